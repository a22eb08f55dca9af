// @ts-check
// Nodes by the names that ComfyUI has for them, and the line that it shows on one.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

export const CORE_TEXT = "$$node-text-preview"; // ComfyUI's own line on a node

const root = () => /** @type {any} */ (app.rootGraph ?? app.graph);

/** @param {any} graph @param {string} id @returns {any} */
const inside = (graph, id) => graph?.nodes?.find((/** @type {any} */ one) => String(one.id) === id);

/** A node by the id that the server knows it by ("4", or in subgraphs "1:4"), behind the subgraphs that it lies in, outermost first; none if it is not there. @param {string} id @returns {any[]} */
export function pathTo(id) {
  let graph = root();
  const path = String(id).split(":").map((part) => {
    const node = inside(graph, part);
    graph = node?.subgraph;
    return node;
  });
  return path.includes(undefined) ? [] : path;
}

/** A node by the name that the page keeps its outputs under: "4", or behind the id of its subgraph. @param {string} name @returns {any} */
export function placed(name) {
  const [id = "", subgraph] = name.split(":").reverse();
  return inside(subgraph ? root()?.subgraphs?.get(subgraph) : root(), id);
}

/** Puts ComfyUI's own line onto a node again: it comes as a node runs, and neither with a kept result nor into a graph that is opened again. @param {any} node @param {string} line */
export function tellLine(node, line) {
  if (node.graph !== app.canvas?.graph) return; // ids count in the graph that is looked at
  /** @type {any} */ (api).dispatchCustomEvent("progress_text", { nodeId: String(node.id), text: line });
}
