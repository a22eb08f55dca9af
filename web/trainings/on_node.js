// @ts-check
// On the node of a training, or of its monitor: the curve as it grows, and its last sample, labelled. It is read from the server, so that it is there again after
// a reload; which job it is lies in the workflow.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { Chart } from "./chart.js";
import { joined } from "./curves.js";
import { addStylesheet, button, element, setText } from "./element.js";
import { media } from "./gallery.js";
import { Pieces } from "./pieces.js";
import { makeRoom } from "./room.js";
import { badge, line } from "./row.js";
import { Earlier, jobsOfRun } from "./run.js";
import { detail, jobs } from "./server.js";
import { steadily } from "./steadily.js";
import { count, loadWords, say, translated } from "./words.js";
import { openTraining } from "./tab.js";

const BEGUN = "musubi_tuner.node"; // message: a node's job has begun
const PROPERTY = "musubi_job";
const CORE_TEXT = "$$node-text-preview"; // ComfyUI's own line on a node
const CURVE = 96;
const SAMPLE = 150;
const POINTS = 400;
const MOST_JOBS = 6; // of a run, in one curve

class Panel {
  /** @param {any} node */
  constructor(node) {
    this.node = node;
    this.id = "";
    this.earlier = new Earlier();
    this.chart = new Chart({ title: say("chart.loss"), height: CURVE, bare: true });
    this.text = element("span");
    this.state = element("div");
    this.sample = element("figure", { class: "mt-node-sample" });
    this.sample.hidden = true;
    this._shown = "";
    this._comfyLine = false; // whether ComfyUI has put its own line onto the node, which needs room too
    this.whole = element("div", { class: "mt-node" }, element("div", { class: "mt-node-line" }, this.state, this.text, button(say("node.open"), () => openTraining(this.id), { icon: "pi-chart-line", only: true })), this.chart.whole, this.sample);
    this.update = steadily(() => this._read(), (error) => this._problem(error));
    this.height = () => 56 + CURVE + (this.sample.hidden ? 0 : SAMPLE);
    const widget = node.addDOMWidget("musubi_training", "musubi_training", this.whole, { serialize: false, hideOnZoom: false, getMinHeight: () => this.height() });
    widget.serialize = false;
    this._room();
    this.unwatch = jobs.watch((changed) => (!changed || changed.has(this.id)) && this.update.ask());
    const removed = node.onRemoved;
    node.onRemoved = (/** @type {any[]} */ ...given) => {
      this.end();
      return removed?.apply(node, given);
    };
  }

  end() {
    this.unwatch();
    this.update.end();
    this.chart.end();
  }

  /** @param {string} id @param {boolean} begins a job that the server does not list yet; a message says when it does */
  follow(id, begins) {
    if (id !== this.id) this.pieces = new Pieces(POINTS);
    this.id = id;
    if (!begins) this.update.ask();
  }

  async _read() {
    const job = await detail(this.id);
    if (job.id !== this.id) return;
    if (!jobs.byId.has(job.id)) jobs.byId.set(job.id, job);
    const ids = jobsOfRun(job, MOST_JOBS);
    await this.pieces?.read(ids, ["loss", "validation"]);
    const run = await this.earlier.read(job, ids);
    if (job.id !== this.id) return;
    this.state.replaceChildren(badge(job));
    const own = Boolean(this.node.widgets?.some((/** @type {any} */ widget) => widget.name === CORE_TEXT));
    if (own !== this._comfyLine) {
      this._comfyLine = own;
      this._room();
    }
    setText(this.text, own ? "" : job.state === "ended" ? translated(job.text || job.error || "") : line(job));
    this.text.title = translated(job.error ?? job.text);
    const marks = run.flatMap(({ saves }) => saves).map(({ step }) => ({ step, kind: /** @type {const} */ ("save") }));
    const pieces = this.pieces?.of(ids) ?? [];
    const validation = { label: say("chart.validation"), curve: joined(pieces, "validation"), of: 0 };
    const validated = validation.curve.mean.some((value) => value !== null);
    this.chart.show([{ label: say("chart.loss"), curve: joined(pieces, "loss") }, ...(validated ? [validation] : [])], marks);
    this._showSample(run);
  }

  /** The last one of the run: one that was continued shows it until it has made its own. @param {import("./server.js").Detail[]} run */
  _showSample(run) {
    const job = run.findLast(({ samples }) => samples.some((sample) => sample.url)) ?? run[run.length - 1];
    const last = job.samples.filter((sample) => sample.url).reduce((/** @type {any} */ newest, sample) => (!newest || sample.step > newest.step ? sample : newest), null);
    const shown = last ? `${last.step} ${last.url}` : "";
    if (shown === this._shown) return;
    this._shown = shown;
    this.sample.hidden = !last;
    if (last) {
      const label = say("gallery.label", { step: count(last.step), prompt: job.prompts[last.prompt] ?? last.prompt + 1 });
      this.sample.replaceChildren(media(last, label), element("figcaption", { title: label }, label));
    }
    this._room();
  }

  _room() {
    this.whole.style.minHeight = `${this.height() - 10}px`; // Nodes 2.0 shares a node's height out by what its parts say of themselves
    makeRoom(this.node);
  }

  /** @param {unknown} error */
  _problem(error) {
    this.state.replaceChildren();
    setText(this.text, error instanceof Error ? error.message : String(error));
  }
}

/** @param {any} node @param {unknown} id @param {boolean} [begins] */
async function follow(node, id, begins = false) {
  if (typeof id !== "string" || !id) return;
  await loadWords();
  node.musubiTraining ??= new Panel(node);
  node.setProperty?.(PROPERTY, id);
  node.musubiTraining.follow(id, begins);
}

/** A node by the id that the server knows it by ("4", or in subgraphs "1:4"), behind the subgraphs that it lies in, outermost first; none if it is not there. @param {string} id @returns {any[]} */
function pathTo(id) {
  let graph = /** @type {any} */ (app.rootGraph ?? app.graph);
  const path = String(id).split(":").map((part) => {
    const node = graph?.nodes?.find((/** @type {any} */ one) => String(one.id) === part);
    graph = node?.subgraph;
    return node;
  });
  return path.includes(undefined) ? [] : path;
}

const trains = (/** @type {any} */ node) => /^MusubiTuner_\w*(LoRATrainer|TrainingMonitor)$/.test(node.comfyClass ?? node.type ?? "");

app.registerExtension({
  name: "MusubiTuner.TrainingNode",
  setup() {
    addStylesheet(new URL("./style.css", import.meta.url).href);
    addStylesheet(new URL("../vendor/uplot.css", import.meta.url).href);
    api.addEventListener(/** @type {any} */ (BEGUN), (/** @type {any} */ { detail: { node, job } }) => {
      const path = pathTo(node);
      if (!path.length || !trains(path[path.length - 1])) return;
      for (const shown of path) follow(shown, job, !jobs.byId.has(job)); // a folded training is watched from outside
    });
  },
  nodeCreated(/** @type {any} */ node) {
    if (!trains(node)) return;
    const executed = node.onExecuted;
    node.onExecuted = function (/** @type {any} */ output) {
      executed?.apply(this, arguments);
      follow(this, output?.musubi_job?.[0]?.id);
    };
  },
  loadedGraphNode(node) {
    if (trains(node) || /** @type {any} */ (node).subgraph) follow(node, node.properties?.[PROPERTY]);
  },
});
