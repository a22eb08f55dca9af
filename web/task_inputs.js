// Shows the inputs that the chosen task takes and hides the others, except those that are set or connected: nothing acts unseen. What is
// hidden keeps its place in the saved workflow.
import { app } from "../../scripts/app.js";

let tasksOf = {}; // node type -> input -> the tasks that take it; written from the nodes' specifications

app.registerExtension({
  name: "MusubiTuner.TaskInputs",
  async setup() {
    const answer = await fetch(new URL("./task_inputs.json", import.meta.url));
    tasksOf = await answer.json();
    for (const node of app.graph?.nodes ?? []) show(node);
  },
  nodeCreated(node) {
    if (!(node.comfyClass ?? node.type)?.startsWith("MusubiTuner_")) return;
    const connectionsChanged = node.onConnectionsChange;
    node.onConnectionsChange = function (...details) {
      const result = connectionsChanged?.apply(this, details);
      queueMicrotask(() => show(this));
      return result;
    };
    const task = widgetOf(node, "task");
    if (task) {
      const chosen = task.callback;
      task.callback = function (...details) {
        const result = chosen?.apply(this, details);
        show(node);
        for (const other of node.graph?.nodes ?? []) if (modelsOf(other) === node) show(other);
        return result;
      };
    }
    queueMicrotask(() => show(node));
  },
  loadedGraphNode(node) {
    show(node);
  },
  afterConfigureGraph() {
    for (const node of app.graph.nodes) show(node);
  },
});

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/** The node whose models go into this one, seen through reroutes; undefined where there is none or it cannot be told. */
function modelsOf(node) {
  const slot = node.inputs?.findIndex((input) => input.name === "models") ?? -1;
  let origin = slot < 0 ? undefined : node.getInputNode?.(slot);
  while (origin?.type === "Reroute") origin = origin.getInputNode(0);
  return origin ?? undefined;
}

function show(node) {
  const tasks = tasksOf[node.comfyClass ?? node.type];
  if (!tasks) return;
  const task = (widgetOf(node, "task") ?? widgetOf(modelsOf(node) ?? {}, "task"))?.value;
  let changed = false;
  for (const [name, taking] of Object.entries(tasks)) {
    const widget = widgetOf(node, name);
    const shown = task === undefined || taking.includes(task) || (widget && isSet(node, widget));
    if (widget) {
      changed ||= Boolean(widget.hidden) === shown;
      widget.hidden = !shown;
      if (widget.options) widget.options.hidden = !shown;
    } else {
      changed = showSocket(node, name, shown) || changed;
    }
  }
  if (!changed) return;
  node.setSize?.([node.size[0], node.computeSize()[1]]);
  node.graph?.setDirtyCanvas?.(true, true);
}

/** The definition of an input: [type, options]. */
function definitionOf(node, name) {
  const { required = {}, optional = {} } = node.constructor.nodeData?.input ?? {};
  return required[name] ?? optional[name];
}

function isSet(node, widget) {
  const { default: unset, options } = definitionOf(node, widget.name)?.[1] ?? {};
  return widget.value !== (unset ?? options?.[0] ?? widget.value);
}

/** Adds or removes an input that is not connected. Returns whether it did. */
function showSocket(node, name, shown) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
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
