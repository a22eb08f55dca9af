// @ts-check
// Shows the inputs that the chosen models and task take and hides the others, and advanced ones until they are asked for. What is set or
// connected stays: nothing acts unseen. What is hidden keeps its place in the saved workflow.
import { app } from "../../scripts/app.js";
import { loadWords, say } from "./trainings/words.js";

/** @typedef {Record<string, Record<string, string[]>>} Takers */

/** @type {Record<string, Takers>} */
let takersOf = {}; // node type -> input -> Model Paths node -> its tasks that take it, none named: all; from the nodes' specifications

const loading = fetch(new URL("./task_inputs.json", import.meta.url))
  .then((answer) => answer.json())
  .then((read) => (takersOf = read));

app.registerExtension({
  name: "MusubiTuner.TaskInputs",
  async init() {
    await Promise.all([loading, loadWords()]);
  },
  nodeCreated(/** @type {any} */ node) {
    if (!isOurs(node)) return;
    const connectionsChanged = node.onConnectionsChange;
    node.onConnectionsChange = function (/** @type {any[]} */ ...details) {
      const result = connectionsChanged?.apply(this, details);
      queueMicrotask(() => showAround(this));
      return result;
    };
    const task = widgetOf(node, "task");
    if (task) {
      const chosen = task.callback;
      task.callback = function (/** @type {any[]} */ ...details) {
        const result = chosen?.apply(this, details);
        showAround(node);
        return result;
      };
    }
    offerAdvanced(node);
    show(node); // before the page reads the saved size, which it would raise to that of all widgets
    loading.then(() => show(node));
  },
  loadedGraphNode(node) {
    show(node);
  },
  afterConfigureGraph() {
    for (const node of app.graph.nodes) showInside(node);
  },
});

/** @param {any} node @returns {string} */
export function typeOf(node) {
  return node.comfyClass ?? node.type ?? "";
}

/** @param {any} node */
function isOurs(node) {
  return typeOf(node).startsWith("MusubiTuner_");
}

/** @param {any} node */
function showInside(node) {
  show(node);
  const inside = node.subgraph?.nodes ?? [];
  inside.forEach(showInside);
  if (!inside.some(isOurs)) return;
  for (const widget of node.widgets ?? []) {
    // what somebody has put on the outside is there to be seen
    widget.advanced = false;
    if (widget.options) widget.options.advanced = false;
  }
}

/** This node and those that its models decide about. @param {any} node */
function showAround(node) {
  for (const other of node.graph?.nodes ?? [node]) if (isOurs(other)) show(other);
  show(node);
}

/** @param {any} node @param {string} name @returns {any} */
export function widgetOf(node, name) {
  return node.widgets?.find((/** @type {any} */ widget) => widget.name === name);
}

/** The node that an input comes from, seen through reroutes; none for a node that was taken out of its graph. @param {any} node @param {number} slot @returns {any} */
export function originOf(node, slot) {
  let origin = node.graph ? node.getInputNode?.(slot) : undefined; // ComfyUI throws where there is no graph
  while (origin?.type === "Reroute") origin = origin.getInputNode(0);
  return origin ?? undefined;
}

/** The node whose models this one works for: its own input, or that of what its output goes into. Undefined where it cannot be told. @param {any} node @returns {any} */
function modelsOf(node, seen = new Set()) {
  if (typeOf(node).endsWith("ModelPaths")) return node;
  seen.add(node);
  const slot = node.inputs?.findIndex((/** @type {any} */ input) => input.name === "models") ?? -1;
  if (slot >= 0) return originOf(node, slot);
  for (const target of targetsOf(node)) {
    const found = !seen.has(target) && modelsOf(target, seen);
    if (found) return found;
  }
  return undefined;
}

/** The nodes that its outputs go into. @param {any} node @returns {any[]} */
export function targetsOf(node) {
  const ids = (node.outputs ?? []).flatMap((/** @type {any} */ output) => output.links ?? []);
  const links = ids.map((/** @type {any} */ id) => node.graph?.getLink?.(id) ?? node.graph?.links?.[id]);
  return links.map((/** @type {any} */ link) => link && node.graph.getNodeById?.(link.target_id)).filter(Boolean);
}

/** @param {Record<string, string[]> | undefined} takers @param {any} models */
function isTaken(takers, models) {
  if (!takers || !models) return true;
  const tasks = takers[typeOf(models)];
  const task = widgetOf(models, "task")?.value;
  return tasks !== undefined && (tasks.length === 0 || task === undefined || tasks.includes(task));
}

/** @param {any} node */
function show(node) {
  if (!isOurs(node)) return;
  const takers = takersOf[typeOf(node)] ?? {};
  const models = modelsOf(node);
  let changed = false;
  for (const widget of node.widgets ?? []) {
    const definition = definitionOf(node, widget.name);
    if (!definition) continue;
    const set = isSet(node, widget);
    const taken = set || isTaken(takers[widget.name], models);
    changed = fold(node, widget, taken, Boolean(definition[1]?.advanced) && !set) || changed;
  }
  for (const [name, taking] of Object.entries(takers)) {
    if (!widgetOf(node, name)) changed = showSocket(node, name, isTaken(taking, models)) || changed;
  }
  if (!changed) return;
  fit(node);
}

/** @param {any} node */
function fit(node) {
  node.setSize?.([node.size[0], node.computeSize()[1]]);
  node.graph?.setDirtyCanvas?.(true, true);
}

/** Hides a widget that is not taken, or an advanced one until the node's `showAdvanced`. Nodes 2.0 folds advanced ones itself, by the
 * options; the classic canvas would leave their places empty. Returns whether anything changed. @param {any} node @param {any} widget @param {boolean} taken @param {boolean} advanced */
function fold(node, widget, taken, advanced) {
  const hidden = !taken || (advanced && !node.showAdvanced);
  const changed = Boolean(widget.hidden) !== hidden;
  widget.hidden = hidden;
  if (widget.options) Object.assign(widget.options, { hidden: !taken, advanced });
  return changed;
}

/** The definition of an input: [type, options]. @param {any} node @param {string} name @returns {[any, any] | undefined} */
function definitionOf(node, name) {
  const { required = {}, optional = {} } = node.constructor.nodeData?.input ?? {};
  return required[name] ?? optional[name];
}

/** @param {any} node @param {any} widget */
function isSet(node, widget) {
  if (node.inputs?.some((/** @type {any} */ input) => input.widget?.name === widget.name && input.link != null)) return true;
  const { default: unset, options } = definitionOf(node, widget.name)?.[1] ?? {};
  return widget.value !== (unset ?? options?.[0] ?? widget.value);
}

/** A button for what ComfyUI's classic canvas has in a menu only; its other way of drawing has a button of its own. @param {any} node */
function offerAdvanced(node) {
  const { required = {}, optional = {} } = node.constructor.nodeData?.input ?? {};
  if (!Object.values({ ...required, ...optional }).some((entry) => entry[1]?.advanced) || !node.addWidget) return;
  const words = () => (node.showAdvanced ? say("advanced.hide") : say("advanced.show"));
  const button = node.addWidget("button", "musubi_advanced", null, () => {
    node.showAdvanced = !node.showAdvanced;
    button.label = words();
    show(node);
  });
  button.label = words();
  button.serialize = false;
  button.options.serialize = false;
  Object.defineProperty(button, "hidden", { get: () => Boolean(/** @type {any} */ (window).LiteGraph?.vueNodesMode), set() {} });
  button.options.hidden = Boolean(/** @type {any} */ (window).LiteGraph?.vueNodesMode);
}

/** Adds or removes an input that is not connected. Returns whether it did. @param {any} node @param {string} name @param {boolean} shown */
function showSocket(node, name, shown) {
  const slot = node.inputs?.findIndex((/** @type {any} */ input) => input.name === name) ?? -1;
  if (shown && slot < 0) {
    const type = definitionOf(node, name)?.[0];
    if (type) node.addInput(name, type);
    return Boolean(type);
  }
  if (!shown && slot >= 0 && node.inputs[slot].link == null) {
    node.removeInput(slot);
    return true;
  }
  return false;
}
