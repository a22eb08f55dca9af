// @ts-check

/** Makes a node high enough for what is in it; it is never made smaller than somebody has drawn it. @param {any} node */
export function makeRoom(node) {
  const needed = node.computeSize()[1];
  if (needed > node.size[1]) node.setSize([node.size[0], needed]);
  node.setDirtyCanvas?.(true, true);
}

/** Moves a widget above another one of its node, where that has it already: a curve is seen before a text is scrolled. @param {any} node @param {any} widget @param {string} other its name */
export function putAbove(node, widget, other) {
  const at = node.widgets?.findIndex((/** @type {any} */ one) => one.name === other) ?? -1;
  if (at < 0) return;
  node.widgets.splice(node.widgets.indexOf(widget), 1);
  node.widgets.splice(at, 0, widget);
}
