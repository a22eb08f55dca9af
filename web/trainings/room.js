// @ts-check

/** Makes a node high enough for what is in it; it is never made smaller than somebody has drawn it. @param {any} node */
export function makeRoom(node) {
  const needed = node.computeSize()[1];
  if (needed > node.size[1]) node.setSize([node.size[0], needed]);
  node.setDirtyCanvas?.(true, true);
}
