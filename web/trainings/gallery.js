// @ts-check
// Samples as a table: a row for each step, newest first, a column for each prompt and for each graph of the user's own.
import { openDialog } from "./dialog.js";
import { button, element } from "./element.js";
import { address } from "./server.js";
import { count, say, translated } from "./words.js";

/** @typedef {import("./server.js").Sample} Sample */
/** @typedef {import("./server.js").WorkflowSample} WorkflowSample */

const STEPS = 20; // rows at first; each has videos, which browsers load one by one

/** A video that plays over and over, or an image, with what it shows as its label. @param {{ media: string, url: string | null }} sample @param {string} label @param {boolean} large */
export function media(sample, label, large = false) {
  if (!sample.url) return element("span", { class: "mt-gone" }, say("gallery.gone"));
  const url = address(sample.url);
  if (!sample.media.startsWith("video")) return element("img", { src: url, alt: label, loading: "lazy" });
  const video = element("video", { src: large ? url : undefined, preload: "metadata", loop: true, controls: large, "aria-label": label });
  video.muted = true;
  video.playsInline = true;
  if (large) video.autoplay = true;
  else inSight(video, url);
  return video;
}

/** @type {IntersectionObserver | undefined} */
let sight;

/** Loads and plays a video while it can be seen, without controls that would cover a small picture. @param {HTMLVideoElement} video @param {string} url */
function inSight(video, url) {
  video.dataset.url = url;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  sight ??= new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const one = /** @type {HTMLVideoElement} */ (target);
      if (!isIntersecting) {
        one.pause();
        continue;
      }
      if (!one.src) one.src = one.dataset.url ?? "";
      if (!calm) one.play().catch(() => undefined); // a browser may refuse to play by itself; a click opens it with controls
    }
  });
  sight.observe(video);
}

/** The samples of some jobs under the prompts of all, those of the newest first: a job may have prompts that others have not. The same text
 * again in a job, as with another seed, is a prompt of its own.
 * @param {{ prompts: string[], samples: Sample[] }[]} jobs oldest first @returns {{ prompts: string[], samples: Sample[] }} */
export function underPrompts(jobs) {
  const keys = jobs.map(({ prompts }) => prompts.map((text, at) => JSON.stringify([text, prompts.slice(0, at).filter((one) => one === text).length])));
  const all = [...new Set(keys.toReversed().flat())];
  const column = (/** @type {number} */ job, /** @type {number} */ prompt) => (prompt in keys[job] ? all.indexOf(keys[job][prompt]) : all.length + prompt);
  const samples = jobs.flatMap((job, at) => job.samples.map((sample) => ({ ...sample, prompt: column(at, sample.prompt) })));
  return { prompts: all.map((key) => JSON.parse(key)[0]), samples };
}

export class Gallery {
  constructor() {
    this.whole = element("div", { class: "mt-gallery" });
    this.rows = STEPS;
    this._said = "";
  }

  /** @param {Sample[]} samples @param {string[]} prompts @param {boolean} going @param {WorkflowSample[]} [made] with graphs of the user's own: a column for each */
  show(samples, prompts, going, made = []) {
    const said = JSON.stringify([samples.map(({ step, prompt, url }) => [step, prompt, url]), prompts, this.rows, going && !samples.length, made]);
    if (said === this._said) return; // players go on playing
    this._said = said;
    if (!samples.length && !made.length) {
      this.whole.replaceChildren(element("p", { class: "mt-faint" }, say(going ? "gallery.none_yet" : "gallery.none")));
      return;
    }
    /** @type {Map<number, Map<number | string, Sample | WorkflowSample>>} of each step, by the number of the prompt or the name of the graph */
    const steps = new Map();
    const put = (/** @type {number | string} */ column, /** @type {Sample | WorkflowSample} */ sample) => {
      if (!steps.has(sample.step)) steps.set(sample.step, new Map());
      steps.get(sample.step)?.set(column, sample);
    };
    for (const sample of samples) put(sample.prompt, sample);
    for (const sample of made) put(sample.workflow, sample);
    const numbers = [...new Set([...(samples.length ? prompts.keys() : []), ...samples.map((sample) => sample.prompt)])].sort((a, b) => a - b);
    const columns = [...new Set(made.map((sample) => sample.workflow)), ...numbers]; // what was asked for first
    const name = (/** @type {number | string} */ column) => (typeof column === "number" ? (prompts[column] ?? `${column + 1}`) : column);
    const hint = (/** @type {number | string} */ column) => (typeof column === "number" ? (prompts[column] ?? "") : say("gallery.workflow", { name: column }));
    const order = [...steps.keys()].sort((a, b) => b - a);
    const cell = (/** @type {number} */ step, /** @type {number | string} */ column) => {
      const sample = steps.get(step)?.get(column);
      return element("td", {}, sample ? shown(sample, say("gallery.label", { step: count(step), prompt: name(column) })) : "–");
    };
    const table = element(
      "table",
      { "aria-label": say("tab.samples"), style: { minWidth: `${56 + 110 * columns.length}px` } }, // what is left goes to the prompts
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, say("gallery.step")), columns.map((column) => element("th", { scope: "col", title: hint(column) }, element("span", { class: "mt-prompt" }, name(column)))))),
      element("tbody", {}, order.slice(0, this.rows).map((step) => element("tr", {}, element("th", { scope: "row" }, count(step)), columns.map((column) => cell(step, column))))),
    );
    const more = order.length - this.rows;
    this.whole.replaceChildren(table);
    if (more > 0) this.whole.append(button(say("list.more", { more }), () => ((this.rows += STEPS), this.show(samples, prompts, going, made))));
  }
}

/** What a cell has: a sample of the training, or all that a graph made of a checkpoint, or what became of it. @param {Sample | WorkflowSample} sample @param {string} label */
function shown(sample, label) {
  if (!("state" in sample)) return [look(sample, label)];
  if (sample.state === "queued") return [element("span", { class: "mt-faint" }, say("gallery.queued"))];
  if (sample.state === "failed") return [element("span", { class: "mt-bad" }, translated(sample.text))];
  return sample.files.map((file) => look(file, sample.prompt ? `${label} · ${sample.prompt}` : label));
}

/** @param {{ media: string, url: string | null }} sample @param {string} name */
const look = (sample, name) => element("button", { type: "button", class: "mt-sample", title: name, "aria-label": name, onclick: () => enlarge(sample, name) }, media(sample, name));

/** Shows one sample as large as the window allows. @param {{ media: string, url: string | null }} sample @param {string} label */
function enlarge(sample, label) {
  const dialog = openDialog(label, "", media(sample, label, true));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}
