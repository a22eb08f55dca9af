// @ts-check
// "Sample with my workflow": checkpoints of a training in the user's own graph, queued as ComfyUI queues it. What it saves comes into the gallery.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { openDialog } from "./dialog.js";
import { button, element } from "./element.js";
import { keepWorkflow, keptWorkflows, noteSample, offered, publish, sampleRefused } from "./server.js";
import { MARK, marked, mayChoose, places, positive, trains, withLoras, workflowWith } from "./under_test.js";
import { count, loadWords, say } from "./words.js";

/**
 * @typedef {import("./server.js").Detail} Detail
 * @typedef {import("./server.js").Checkpoint} Checkpoint
 * @typedef {{ name: string, prompt: import("./under_test.js").Prompt, workflow: any }} Graph
 * @typedef {(text: string, bad?: boolean) => void} Tell
 */

const OPEN = ""; // the choice that means the graph on the canvas
const LOOK = 5000; // milliseconds between two looks whether the GPU is free

/** What cannot be in a name of a file. @param {string} text */
const plainName = (text) => text.replace(/[<>:"/\\|?*\x00-\x1f]/g, "_").replace(/^[\s.-]+|[\s.]+$/g, "").slice(0, 50) || "workflow";

/** Whether an input of a node is a list to choose from. @param {string} type @param {string} input */
function isChoice(type, input) {
  const inputs = /** @type {any} */ (globalThis).LiteGraph?.registered_node_types?.[type]?.nodeData?.input ?? {};
  const kind = (inputs.required?.[input] ?? inputs.optional?.[input])?.[0];
  return Array.isArray(kind) || kind === "COMBO";
}

/** Why ComfyUI did not take a prompt, or whatever else went wrong. @param {any} error */
function reason(error) {
  const said = error?.response;
  if (!said?.error) return error instanceof Error ? error.message : String(error);
  const nodes = Object.entries(said.node_errors ?? {}).flatMap(([id, node]) => node.errors.map((/** @type {any} */ one) => `${node.class_type} (${id}): ${one.message}${one.details ? ` (${one.details})` : ""}`));
  return [said.error.message ?? String(said.error), ...nodes].join("\n");
}

class Sampling {
  /** @param {Detail} job @param {Tell} tell what is said in the tab, too: the window may be closed meanwhile */
  constructor(job, tell) {
    this.job = job;
    this.tellTab = tell;
    /** @type {Graph | null} */
    this.graph = null;
    this.atOnce = false;
    /** @type {Map<HTMLInputElement, Checkpoint>} */
    this.boxes = new Map();
    this.which = element("select", { class: "mt-select", "aria-label": say("flow.workflow"), onchange: () => this._choose() });
    this.forget = button(say("flow.forget"), () => this._forget(), { icon: "pi-trash" });
    this.where = element("p", { class: "mt-said", role: "status" });
    this.keep = element("input", { type: "checkbox", checked: true });
    this.keeping = element("label", { class: "mt-check" }, this.keep, say("flow.keep"));
    this.list = element("div", { class: "mt-storage", role: "group", "aria-label": say("flow.checkpoints") });
    this.busy = element("p", { class: "mt-said", role: "status" });
    this.go = button(say("flow.queue"), () => this._queue(), { icon: "pi-play", kind: "mt-first" });
    this.goAhead = () => {};
    this.now = button(say("flow.now"), () => ((this.atOnce = true), this.said.focus(), this.goAhead()), { icon: "pi-forward" });
    this.said = element("div", { class: "mt-said", role: "status", tabindex: "-1" });
    this.go.disabled = this.now.hidden = true;
  }

  async read() {
    const [{ checkpoints, occupied, generation }, { names }] = await Promise.all([offered(this.job.id), keptWorkflows()]);
    this.busy.textContent = !occupied || generation === "go_ahead" ? "" : say(generation === "wait" ? "flow.busy.wait" : "flow.busy.warn");
    checkpoints.forEach((one, place) => {
      const box = element("input", { type: "checkbox", checked: place === 0, onchange: () => this._check() });
      this.boxes.set(box, one);
      this.list.append(element("label", {}, box, say("chart.step", { step: count(one.step) }), element("span", { class: "mt-faint mt-file" }, Object.values(one.files).join(", "))));
    });
    if (!checkpoints.length) this.list.append(element("p", { class: "mt-faint" }, say("flow.none")));
    this._offer(names);
    await this._choose();
    if (!this.graph && names.length) {
      this.which.value = names[0]; // the open graph has no LoRA loader: most likely the one that was used before is meant
      await this._choose();
    }
  }

  /** @param {string[]} names */
  _offer(names) {
    const open = /** @type {any} */ (app.extensionManager).workflow?.activeWorkflow?.filename;
    this.openName = plainName(String(open ?? "workflow").replace(/\.json$/, ""));
    this.which.replaceChildren(element("option", { value: OPEN }, say("flow.canvas", { name: this.openName })), ...names.map((name) => element("option", { value: name }, name)));
  }

  /** Reads the graph that is chosen. */
  async _choose() {
    const name = this.which.value;
    this.graph = null;
    this.keeping.hidden = name !== OPEN;
    this.forget.hidden = name === OPEN;
    try {
      const { output, workflow } = name === OPEN ? await app.graphToPrompt() : await keptWorkflows(name).then(({ prompt, workflow: kept }) => ({ output: prompt, workflow: kept }));
      const found = this._places(output, this._chosen()[0] ?? [...this.boxes.values()][0]);
      this.where.textContent = say("flow.loader", { loaders: [...new Set(found.map(({ id, input }) => `“${output[id]._meta?.title ?? output[id].class_type}” (${id}), ${input}`))].join("; ") });
      this.graph = { name: name === OPEN ? (this.openName ?? "workflow") : name, prompt: output, workflow };
    } catch (error) {
      this.where.textContent = reason(error);
    }
    this.where.classList.toggle("mt-bad", !this.graph);
    this._check();
  }

  /** Where the LoRAs of a checkpoint go. Throws what is wrong with the graph, in words. @param {any} prompt @param {Checkpoint | undefined} checkpoint */
  _places(prompt, checkpoint) {
    const experts = Object.keys(checkpoint?.files ?? { "": "" });
    const { places: found, problem } = places(prompt, experts, isChoice);
    if (problem) throw new Error(say(problem.key, problem.values));
    const title = trains(withLoras(prompt, found, {}));
    if (title) throw new Error(say("flow.trains", { title }));
    return found;
  }

  _chosen() {
    return [...this.boxes].filter(([box]) => box.checked).map(([, one]) => one);
  }

  _check() {
    this.go.disabled = !this.graph || !this._chosen().length;
  }

  async _forget() {
    const { names } = await keepWorkflow(this.which.value, {});
    this._offer(names);
    this.which.focus(); // the button goes
    await this._choose();
  }

  /** @param {string} text @param {boolean} [bad] */
  _tell(text, bad = false) {
    this.said.textContent = text;
    this.said.classList.toggle("mt-bad", bad);
    this.tellTab(text, bad);
  }

  async _queue() {
    const graph = /** @type {Graph} */ (this.graph);
    const chosen = this._chosen();
    let done = 0;
    this.go.disabled = true;
    this._tell("…");
    this.said.focus();
    try {
      if (this.which.value === OPEN && this.keep.checked) await keepWorkflow(graph.name, { prompt: graph.prompt, workflow: graph.workflow });
      for (const checkpoint of chosen) {
        await this._free();
        try {
          await this._one(graph, checkpoint);
        } catch (error) {
          throw new Error(say("flow.refused", { step: count(checkpoint.step), why: reason(error) }));
        }
        this._tell(say("flow.queued", { done: (done += 1), all: chosen.length }));
      }
    } catch (error) {
      this._tell(reason(error), true);
    }
    this._check();
  }

  /** Waits while a training in the background has the GPU, where the settings say so. */
  async _free() {
    for (;;) {
      const { occupied, generation } = this.atOnce ? { occupied: null, generation: "" } : await offered(this.job.id);
      this.now.hidden = !occupied || generation !== "wait";
      if (this.now.hidden) return;
      this._tell(say("flow.waits"));
      await new Promise((resolve) => {
        this.goAhead = () => resolve(null);
        setTimeout(resolve, LOOK);
      });
    }
  }

  /** @param {Graph} graph @param {Checkpoint} checkpoint */
  async _one({ name, prompt, workflow }, checkpoint) {
    const where = this._places(prompt, checkpoint);
    const { loras } = await publish(this.job.id, checkpoint.step);
    const output = withLoras(prompt, where, loras);
    const { sample } = await noteSample(this.job.id, { step: checkpoint.step, workflow: name, prompt: positive(output) });
    try {
      await api.queuePrompt(0, /** @type {any} */ ({ output: marked(output, sample), workflow: workflowWith(workflow, prompt, where, loras) }));
    } catch (error) {
      if (/** @type {any} */ (error)?.response) await sampleRefused(this.job.id, sample); // without an answer, it may be in the queue
      throw error;
    }
  }
}

/** Opens the window. @param {Detail} job @param {Tell} tell what is said in the tab */
export function openMyWorkflow(job, tell) {
  const sampling = new Sampling(job, tell);
  openDialog(
    say("flow.title"),
    "mt-flow",
    element("div", { class: "mt-tools" }, sampling.which, sampling.forget),
    sampling.where,
    sampling.keeping,
    sampling.list,
    sampling.busy,
    element("div", { class: "mt-buttons" }, sampling.go, sampling.now),
    sampling.said,
  );
  sampling.which.focus();
  sampling.read().catch((error) => {
    sampling.said.textContent = reason(error);
    sampling.said.classList.add("mt-bad");
  });
}

app.registerExtension({
  name: "MusubiTuner.SampleWithMyWorkflow",
  init: loadWords,
  getNodeMenuItems(node) {
    if (!node.widgets?.some((widget) => widget.type === "combo" && mayChoose(widget.name))) return [];
    return [{ content: say("flow.mark", { mark: MARK }), callback: () => ((node.title = MARK), node.graph?.setDirtyCanvas?.(true, true)) }];
  },
});
