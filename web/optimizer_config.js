// @ts-check
// Optimizer Config: lists optimizers by group or as found, shows the arguments of the chosen one, fills in its learning rate, draws how the
// rate goes over the training, and shows what the optimizer of the last training said of itself. Arguments are kept in optimizer_args, one
// name=value per line, so that a workflow means the same without this page.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { originOf, targetsOf, typeOf, widgetOf } from "./task_inputs.js";
import { report } from "./trainings/report.js";
import { detail } from "./trainings/server.js";
import { count, language, loadWords, number, say } from "./trainings/words.js";

const NODE = "MusubiTuner_OptimizerConfig";
const NONE = "none";
const EXPECTED_STEPS = 1000; // where nobody says how many
const JOB = "musubi_job"; // the property of a trainer's node that names its last training
const PICTURE = { width: 300, height: 58 };
const WORDS = 34; // pixels of two lines above it

/** @typedef {{ name: string, kind: string, default: unknown, help: string, bounds: number[] | null, choices: string[], none: boolean }} Argument */
/** @typedef {{ group: string, help: string, rate: string, learning_rate: number, presets: Record<string, Record<string, any>>, arguments: Argument[] }} Entry */

/** @type {Record<string, Entry>} by the choices of optimizer_type */
let table = {};

const loading = Promise.all([fetch(new URL(`./optimizers/${language()}.json`, import.meta.url)).then((answer) => answer.json()), loadWords()]).then(([read]) => (table = read));

app.registerExtension({
  name: "MusubiTuner.OptimizerConfig",
  async init() {
    await loading;
  },
  nodeCreated(/** @type {any} */ node) {
    if (typeOf(node) === NODE) loading.then(() => (node.musubiOptimizer ??= new Settings(node)));
  },
  loadedGraphNode(/** @type {any} */ node) {
    if (typeOf(node) === NODE) loading.then(() => (node.musubiOptimizer ??= new Settings(node)).loaded());
  },
});

class Settings {
  /** @param {any} node */
  constructor(node) {
    this.node = node;
    this.type = widgetOf(node, "optimizer_type");
    this.rate = widgetOf(node, "learning_rate");
    this.lines = widgetOf(node, "optimizer_args");
    this.preset = widgetOf(node, "optimizer_preset");
    this.shown = "";
    /** @type {Map<string, string>} */
    this.kept = new Map(); // optimizer -> its lines, while others are looked at
    /** @type {any[]} */
    this.added = [];
    this.watched = new WeakSet();
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.soon = undefined;
    this.group = this._own(node.addWidget("combo", "musubi_group", say("optimizer.all"), () => this._list(), { values: [say("optimizer.all"), ...groups()] }), say("optimizer.group"));
    this.search = this._own(node.addWidget("text", "musubi_search", "", () => this._list()), say("optimizer.search"), say("optimizer.search.how"));
    this.picture = new Picture(node);
    this._own(node.addWidget("button", "musubi_report", null, () => this._report()), say("report"), say("optimizer.report.how"));
    after(this.type, () => this._chosen());
    after(this.preset, () => this._presetChosen());
    after(this.lines, () => this._showArguments());
    for (const widget of node.widgets) if (widget.serialize !== false && widget !== this.lines) after(widget, () => this.draw());
    const connected = node.onConnectionsChange;
    node.onConnectionsChange = (/** @type {any[]} */ ...details) => {
      queueMicrotask(() => this.draw());
      return connected?.apply(node, details);
    };
    this.loaded();
  }

  loaded() {
    this.shown = this.type.value;
    const { help = "", rate = "" } = table[this.shown] ?? {};
    this.type.tooltip = help || this.type.tooltip;
    this.rate.tooltip = rate ? say("optimizer.rate", { rate }) : this.rate.tooltip;
    this._showPresets();
    this._showArguments();
    this.draw();
  }

  /** Only the optimizers of the group that the search finds, by name or in what is said of them; where there are none, those of the group. The
   * chosen one stays while it is of the group and the search finds others too. */
  _list() {
    const ofGroup = Object.keys(table).filter((name) => this.group.value === say("optimizer.all") || table[name]?.group === this.group.value);
    const wanted = String(this.search.value ?? "").trim().toLowerCase();
    const found = ofGroup.filter((name) => `${name} ${table[name]?.help}`.toLowerCase().includes(wanted));
    this.type.options.values = found.length ? found : ofGroup;
    this.search.label = say(found.length ? "optimizer.search" : "optimizer.search.none");
    if (!ofGroup.includes(this.type.value) || found.length === 1) {
      this.type.value = this.type.options.values[0];
      this._chosen();
    }
  }

  /** What was the last one's goes: its usual rate, its preset and its arguments, which come back with it. */
  _chosen() {
    const [before, now] = [table[this.shown], table[this.type.value]];
    if (!now || this.shown === this.type.value) return;
    const usual = this._inPreset("learning_rate") ?? before?.learning_rate;
    if (this.rate.value === usual) this.rate.value = now.learning_rate;
    this.kept.set(this.shown, this.lines.value);
    this.lines.value = this.kept.get(this.type.value) ?? "";
    this.preset.value = NONE;
    this.loaded();
  }

  _presetChosen() {
    this.rate.value = this._inPreset("learning_rate") ?? this.rate.value;
    this._showArguments();
  }

  /** @param {string} name @returns {any} */
  _inPreset(name) {
    return table[this.shown]?.presets[this.preset?.value]?.[name];
  }

  _showPresets() {
    if (this.preset) this.preset.options.values = [NONE, ...Object.keys(table[this.shown]?.presets ?? {})];
  }

  _showArguments() {
    for (const widget of this.added.splice(0)) remove(this.node, widget);
    const lines = /** @type {string[]} */ (this.lines.value.split("\n"));
    const given = new Map(lines.map((line) => /** @type {[string, string]} */ (line.split(/=(.*)/s).map((part) => part?.trim()))));
    for (const argument of table[this.shown]?.arguments ?? []) {
      const usual = this._inPreset(argument.name) ?? argument.default;
      const value = given.get(argument.name) ?? literal(usual);
      const put = (/** @type {string} */ text) => this._put(argument.name, text === literal(usual) ? "" : text);
      const widget = this._widget(argument, value, put);
      this.added.push(this._own(widget, argument.name, hint(argument, usual)));
    }
    fit(this.node);
  }

  /** The widget of an argument, which shows a Python literal and gives one to `put`.
   * @param {Argument} argument @param {string} value @param {(text: string) => void} put */
  _widget(argument, value, put) {
    const add = (/** @type {string} */ kind, /** @type {any} */ shown, /** @type {(value: any) => void} */ then, options = {}) => {
      const widget = this.node.addWidget(kind, `musubi_${argument.name}`, shown, then, options);
      widget.value = shown; // the page gives a widget the value that the last one of its name had
      return widget;
    };
    if (argument.kind === "choice") return add("combo", unquoted(value), (chosen) => put(literal(chosen)), { values: argument.choices });
    if (argument.kind === "bool" && !argument.none) return add("toggle", value === "True", (on) => put(literal(on)));
    if (argument.kind === "bool") return add("combo", value, put, { values: ["None", "True", "False"] });
    return add("text", value, (text) => put(String(text).trim()));
  }

  /** Sets a line of optimizer_args, or takes it out. @param {string} name @param {string} text */
  _put(name, text) {
    const others = this.lines.value.split("\n").filter((/** @type {string} */ line) => line.trim() && line.split("=")[0].trim() !== name);
    this.lines.value = [...others, ...(text ? [`${name}=${text}`] : [])].join("\n");
    this.draw();
  }

  /** @param {any} widget @param {string} label */
  _own(widget, label, tooltip = "") {
    widget.label = label;
    widget.tooltip = tooltip;
    widget.serialize = false;
    widget.options = Object.assign(widget.options ?? {}, { serialize: false });
    return widget;
  }

  draw() {
    clearTimeout(this.soon);
    this.soon = setTimeout(async () => {
      const length = await this._length();
      const inputs = this.node.widgets.filter((/** @type {any} */ widget) => widget.serialize !== false);
      const values = Object.fromEntries(inputs.map((/** @type {any} */ widget) => [widget.name, widget.value]));
      const body = JSON.stringify({ values, steps: length.steps });
      const answer = await api.fetchApi("/musubi_tuner/learning_rates", { method: "POST", headers: { "Content-Type": "application/json" }, body });
      this.picture.show(await answer.json(), length.words);
    }, 100);
  }

  /** How long the training is that this is for, as far as it is known: how many steps an epoch has, the last training of the same node says.
   * @returns {Promise<{ steps: number, words: string }>} */
  async _length() {
    for (const trainer of targetsOf(this.node)) {
      const slot = trainer.inputs?.findIndex((/** @type {any} */ input) => input.name === "lora_config") ?? -1;
      const config = slot >= 0 ? originOf(trainer, slot) : undefined;
      if (!config) continue;
      const [steps, epochs] = ["max_train_steps", "max_train_epochs"].map((name) => widgetOf(config, name));
      for (const widget of [steps, epochs]) {
        if (!widget || this.watched.has(widget)) continue;
        this.watched.add(widget);
        after(widget, () => this.draw());
      }
      if (epochs?.value) {
        const last = await lastOf(trainer);
        if (!last?.total || !last.epochs) return { steps: EXPECTED_STEPS, words: say("optimizer.rates.epochs", { epochs: epochs.value, steps: EXPECTED_STEPS }) };
        const known = Math.round((last.total / last.epochs) * epochs.value);
        return { steps: known, words: say("optimizer.rates.known", { epochs: epochs.value, steps: count(known) }) };
      }
      if (steps) return { steps: steps.value, words: say("optimizer.rates", { steps: steps.value }) };
    }
    return { steps: EXPECTED_STEPS, words: say("optimizer.rates.some", { steps: EXPECTED_STEPS }) };
  }

  /** Shows what the optimizer said of itself in the newest training of the nodes that this one is connected to. */
  async _report() {
    const trainings = await Promise.all(targetsOf(this.node).map(lastOf));
    const [newest] = trainings.flatMap((job) => (job?.optimizer ? [job] : [])).sort((one, other) => other.created - one.created);
    const said = newest?.optimizer;
    report(this.node, said ? { line: `${newest?.name}: ${say("settings.optimizer", { step: count(said.step) })}`, text: said.lines.join("\n") } : { line: "", text: say("optimizer.report.none") });
  }
}

/** The last training that a node began, with all that the server knows of it. @param {any} trainer */
async function lastOf(trainer) {
  const id = trainer.properties?.[JOB];
  return id ? detail(id).catch(() => undefined) : undefined; // it may have been removed since
}

/** The learning rate over the steps, as a line with its highest and last value. */
class Picture {
  /** @param {any} node */
  constructor(node) {
    this.whole = document.createElement("div");
    this.whole.style.cssText = "font: 11px sans-serif; color: var(--descrip-text, #999); padding: 0 6px;";
    this.words = document.createElement("div");
    this.words.style.cssText = "overflow: hidden; display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical; line-height: 1.3;";
    this.drawing = drawn("svg", { viewBox: `0 0 ${PICTURE.width} ${PICTURE.height}`, preserveAspectRatio: "none", width: "100%", height: PICTURE.height });
    this.line = drawn("polyline", { fill: "none", stroke: "var(--p-primary-color, #4a9)", "stroke-width": 2, "vector-effect": "non-scaling-stroke" });
    this.drawing.append(this.line);
    this.whole.append(this.words, this.drawing);
    const widget = node.addDOMWidget("musubi_schedule", "musubi_schedule", this.whole, { serialize: false, hideOnZoom: false, getMinHeight: () => PICTURE.height + WORDS });
    widget.serialize = false;
  }

  /** @param {{ rates?: [number, number][], note?: string, error?: string }} answer @param {string} over what it goes over, in words */
  show({ rates = [], note = "", error = "" }, over) {
    const top = Math.max(...rates.map(([, rate]) => rate), 0);
    const last = rates.at(-1)?.[0] ?? 1;
    const place = (/** @type {[number, number]} */ [step, rate]) => `${((step - 1) / Math.max(1, last - 1)) * PICTURE.width},${PICTURE.height - 3 - (top ? rate / top : 0) * (PICTURE.height - 6)}`;
    this.line.setAttribute("points", rates.map(place).join(" "));
    const told = [rates[0]?.[1], top, rates.at(-1)?.[1]].map(number).filter((one, place, all) => one !== all[place - 1]);
    const numbers = rates.length ? `${over}: ${told.join(" … ")}` : "";
    this.words.textContent = [error || note, numbers].filter(Boolean).join(" · ");
    this.words.title = this.words.textContent;
    this.words.style.color = error ? "var(--error-text, #ff6b5e)" : "";
  }
}

const groups = () => [...new Set(Object.values(table).map((entry) => entry.group))];

/** A value as Python writes it. @param {unknown} value @returns {string} */
function literal(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `(${value.map(literal).join(", ")})`;
  return typeof value === "string" ? `"${value}"` : String(value);
}

/** @param {string} text */
const unquoted = (text) => text.replace(/^["'](.*)["']$/s, "$1");

/** @param {Argument} argument @param {unknown} usual */
function hint(argument, usual) {
  const { bounds } = argument;
  return [argument.help, bounds && argument.kind !== "choice" ? `${bounds[0]} … ${bounds[1]}.` : "", say("optimizer.usual", { value: literal(usual) })].filter(Boolean).join(" ");
}

/** Calls `then` after a widget was changed by hand. @param {any} widget @param {() => void} then */
function after(widget, then) {
  if (!widget) return;
  const changed = widget.callback;
  widget.callback = function (/** @type {any[]} */ ...details) {
    const result = changed?.apply(this, details);
    then();
    return result;
  };
}

/** @param {any} node @param {any} widget */
function remove(node, widget) {
  if (node.removeWidget) return node.removeWidget(widget);
  widget.onRemove?.();
  node.widgets.splice(node.widgets.indexOf(widget), 1);
}

/** @param {string} name @param {Record<string, string | number>} attributes */
function drawn(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}

/** Makes the node as high as what is in it needs. @param {any} node */
function fit(node) {
  node.setSize?.([node.size[0], node.computeSize()[1]]);
  node.setDirtyCanvas?.(true, true);
}
