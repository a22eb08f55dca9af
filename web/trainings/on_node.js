// @ts-check
// On the node of a training, or of its monitor: the curve as it grows, and its last sample, labelled; on TensorBoard's, its address. It is read from the server, so that it is there again after
// a reload; which job it is lies in the workflow.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { Chart } from "./chart.js";
import { joined } from "./curves.js";
import { addStylesheet, button, element, setText } from "./element.js";
import { media } from "./gallery.js";
import { Pieces } from "./pieces.js";
import { CORE_TEXT, pathTo } from "./places.js";
import { makeRoom, putAbove } from "./room.js";
import { badge, line, title } from "./row.js";
import { Earlier, jobsOfRun } from "./run.js";
import { detail, jobs } from "./server.js";
import { steadily } from "./steadily.js";
import { count, loadWords, opening, say, translated } from "./words.js";
import { openTraining } from "./tab.js";

const BEGUN = "musubi_tuner.node"; // message: a node's training has begun
const BEGINS = "musubi_tuner.begins"; // message: a node's job, of whatever kind
const PROPERTY = "musubi_job";
const ADDRESS = /http:\/\/(127\.0\.0\.1|localhost):\d+\/?/; // of what a job serves on this machine
const CURVE = 96;
const SAMPLE = 150;
const [LEAST, MOST, LINE] = [2, 6, 15]; // lines of the text, and how high they are
const [BESIDE, LETTER] = [135, 6.3]; // pixels of a node that are not the text's, and of a letter
const POINTS = 400;
const MOST_JOBS = 6; // of a run, in one curve

class Panel {
  /** @param {any} node */
  constructor(node) {
    this.node = node;
    this.id = "";
    this.failure = ""; // of a node that is folded into this one, with or without a job
    this.earlier = new Earlier();
    this.chart = new Chart({ title: say("chart.loss"), height: CURVE, bare: true });
    this.text = element("span");
    this.state = element("div");
    this.sample = element("figure", { class: "mt-node-sample" });
    this.sample.hidden = true;
    this._shown = "";
    this._lines = LEAST;
    this._comfyLine = false; // whether ComfyUI has put its own line onto the node, which needs room too
    this.opens = button(say("node.open"), () => openTraining(this.id), { icon: "pi-chart-line", only: true });
    this.whole = element("div", { class: "mt-node" }, element("div", { class: "mt-node-line" }, this.state, this.text, this.opens), this.chart.whole, this.sample);
    this.update = steadily(() => this._read(), (error) => this._problem(error));
    this.height = () => 56 + (this._lines - LEAST) * LINE + (this.chart.whole.hidden ? 0 : CURVE) + (this.sample.hidden ? 0 : SAMPLE);
    const widget = node.addDOMWidget("musubi_training", "musubi_training", this.whole, { serialize: false, hideOnZoom: false, getMinHeight: () => this.height() });
    widget.serialize = false;
    putAbove(node, widget, "musubi_report");
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

  /** @param {string} id @param {{ begins?: boolean, newest?: boolean }} how begins: the server does not list it yet; a message says when it does. newest: it, or a later job of its run */
  follow(id, { begins = false, newest = false }) {
    if (id !== this.id) this.pieces = new Pieces(POINTS);
    this.id = id;
    this.opens.hidden = false;
    this.newest = newest;
    if (!begins) this.update.ask();
  }

  /** @param {string} reason */
  fail(reason) {
    this.failure = reason;
    if (!this.id) this.chart.whole.hidden = this.opens.hidden = true;
    this._sayFailure();
    const again = () => {
      this.failure = "";
      if (this.id) this.update.ask();
      else this._clear();
    };
    api.addEventListener("execution_start", again, { once: true });
  }

  _sayFailure() {
    this.state.replaceChildren(badge(/** @type {any} */ ({ state: "ended", outcome: "failed" })));
    this._say(opening(this.failure));
    this.text.title = this.failure;
  }

  _clear() {
    this.state.replaceChildren();
    this._say("");
    this.text.title = "";
  }

  async _read() {
    if (!this.id) return;
    const job = await detail(this.id);
    if (job.id !== this.id) return;
    if (!jobs.byId.has(job.id)) jobs.byId.set(job.id, job);
    if (this.newest && job.jobs_of_run[0] > job.id) return void follow(this.node, job.jobs_of_run[0]);
    const ids = jobsOfRun(job, MOST_JOBS);
    await this.pieces?.read(ids, ["loss", "validation"]);
    const run = await this.earlier.read(job, ids);
    if (job.id !== this.id) return;
    this.state.replaceChildren(badge(job));
    const own = Boolean(this.node.widgets?.some((/** @type {any} */ widget) => widget.name === CORE_TEXT));
    const trains = job.kind === "training";
    const pieces = this.pieces?.of(ids) ?? [];
    const losses = joined(pieces, "loss");
    const draws = trains && (job.state !== "ended" || losses.mean.some((value) => value !== null)); // nothing is to come where it ended before its first step
    if (own !== this._comfyLine || draws === this.chart.whole.hidden) {
      this._comfyLine = own;
      this.chart.whole.hidden = !draws;
      this._room();
    }
    const ended = (job.outcome === "failed" && opening(job.error ?? "")) || job.text || job.error || ""; // that it failed is on its badge
    const said = job.state === "ended" ? translated(ended) : line(job);
    const [address] = job.state === "ended" ? [] : (ADDRESS.exec(job.text) ?? []);
    if (address && !own) this.text.replaceChildren(element("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, address));
    else this._say(own ? "" : trains ? said : [title(job), said].filter(Boolean).join(" · "));
    this.text.title = translated(job.error ?? job.text);
    if (this.failure) this._sayFailure();
    const marks = run.flatMap(({ saves }) => saves).map(({ step }) => ({ step, kind: /** @type {const} */ ("save") }));
    const validation = { label: say("chart.validation"), curve: joined(pieces, "validation"), of: 0 };
    const validated = validation.curve.mean.some((value) => value !== null);
    this.chart.show([{ label: say("chart.loss"), curve: losses }, ...(validated ? [validation] : [])], marks);
    this._showSample(run);
  }

  /** @param {string} text */
  _say(text) {
    setText(this.text, text);
    const long = text.replace(/[\u2e80-\uffff]/g, "xx").length * LETTER; // those letters are twice as wide
    const lines = Math.min(MOST, Math.max(LEAST, Math.ceil(long / Math.max(LETTER, this.node.size[0] - BESIDE))));
    if (lines === this._lines) return;
    this._lines = lines;
    this.text.style.webkitLineClamp = String(lines);
    this._room();
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
    this._say(error instanceof Error ? error.message : String(error));
  }
}

/** @param {any} node @param {unknown} id @param {{ begins?: boolean, kept?: boolean, newest?: boolean }} [how] kept: in the workflow; others as `Panel.follow` */
async function follow(node, id, { kept = true, ...how } = {}) {
  if (typeof id !== "string" || !id) return;
  await loadWords();
  node.musubiTraining ??= new Panel(node);
  if (kept && node.properties?.[PROPERTY] !== id) {
    node.setProperty?.(PROPERTY, id);
    noted();
  }
  node.musubiTraining.follow(id, how);
}

/** ComfyUI keeps what was changed by hand when a page is closed; of this it is told. */
function noted() {
  const tracker = /** @type {any} */ (app.extensionManager)?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker); // newer and older ComfyUI
}

const typeOf = (/** @type {any} */ node) => String(node.comfyClass ?? node.type ?? "");
const trains = (/** @type {any} */ node) => /^MusubiTuner_\w*(LoRATrainer|TrainingMonitor)$/.test(typeOf(node));

/** Whether a job is shown on it. @param {any} node */
const watches = (node) => trains(node) || typeOf(node) === "MusubiTuner_TensorBoard";

/** Whether a training is folded into a node. @param {any} node @returns {boolean} */
const folds = (node) => Boolean(node.subgraph?.nodes.some((/** @type {any} */ one) => trains(one) || folds(one)));

app.registerExtension({
  name: "MusubiTuner.TrainingNode",
  setup() {
    addStylesheet(new URL("./style.css", import.meta.url).href);
    addStylesheet(new URL("../vendor/uplot.css", import.meta.url).href);
    api.addEventListener(/** @type {any} */ (BEGUN), (/** @type {any} */ { detail: { node, job } }) => {
      const path = pathTo(node);
      if (!path.length || !trains(path[path.length - 1])) return;
      for (const shown of path) follow(shown, job, { begins: !jobs.byId.has(job) }); // a folded training is watched from outside
    });
    api.addEventListener(/** @type {any} */ (BEGINS), (/** @type {any} */ { detail: { node, job } }) => {
      const path = pathTo(node);
      if (!path.length || trains(path[path.length - 1])) return;
      for (const shown of path.slice(0, -1)) if (folds(shown)) follow(shown, job, { begins: !jobs.byId.has(job), kept: false }); // what is done before it trains
    });
    api.addEventListener("execution_error", async ({ detail }) => {
      const around = pathTo(String(detail.node_id)).slice(0, -1).filter(folds);
      await loadWords();
      for (const shown of around) (shown.musubiTraining ??= new Panel(shown)).fail(detail.exception_message.trim());
    });
  },
  nodeCreated(/** @type {any} */ node) {
    if (!watches(node)) return;
    const executed = node.onExecuted;
    node.onExecuted = function (/** @type {any} */ output) {
      executed?.apply(this, arguments);
      follow(this, output?.musubi_job?.[0]?.id);
    };
  },
  loadedGraphNode(node) {
    const monitors = node.comfyClass === "MusubiTuner_TrainingMonitor"; // what it was asked for, and no later job
    if (watches(node) || /** @type {any} */ (node).subgraph) follow(node, node.properties?.[PROPERTY], { newest: !monitors });
  },
});
