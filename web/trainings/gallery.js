// @ts-check
// Samples as a table: a row for each step, newest first, a column for each prompt.
import { button, element } from "./element.js";
import { address } from "./server.js";
import { count, say } from "./words.js";

/** @typedef {import("./server.js").Sample} Sample */

const STEPS = 20; // rows at first; each has videos, which browsers load one by one

/** A video that plays over and over, or an image, with what it shows as its label. @param {Sample} sample @param {string} label @param {boolean} large */
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

export class Gallery {
  constructor() {
    this.whole = element("div", { class: "mt-gallery" });
    this.rows = STEPS;
    this._said = "";
  }

  /** @param {Sample[]} samples @param {string[]} prompts @param {boolean} going */
  show(samples, prompts, going) {
    const said = JSON.stringify([samples.map(({ step, prompt, url }) => [step, prompt, url]), prompts, this.rows, going && !samples.length]);
    if (said === this._said) return; // players go on playing
    this._said = said;
    if (!samples.length) {
      this.whole.replaceChildren(element("p", { class: "mt-faint" }, say(going ? "gallery.none_yet" : "gallery.none")));
      return;
    }
    /** @type {Map<number, Map<number, Sample>>} */
    const steps = new Map();
    for (const sample of samples) {
      if (!steps.has(sample.step)) steps.set(sample.step, new Map());
      steps.get(sample.step)?.set(sample.prompt, sample);
    }
    const columns = [...new Set([...prompts.keys(), ...samples.map((sample) => sample.prompt)])].sort((a, b) => a - b);
    const order = [...steps.keys()].sort((a, b) => b - a);
    const label = (/** @type {number} */ step, /** @type {number} */ column) => say("gallery.label", { step: count(step), prompt: prompts[column] ?? column + 1 });
    const cell = (/** @type {number} */ step, /** @type {number} */ column) => {
      const sample = steps.get(step)?.get(column);
      if (!sample) return element("td", {}, "–");
      const name = label(step, column);
      return element("td", {}, element("button", { type: "button", class: "mt-sample", title: name, "aria-label": name, onclick: () => enlarge(sample, name) }, media(sample, name)));
    };
    const table = element(
      "table",
      {},
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, say("gallery.step")), columns.map((column) => element("th", { scope: "col", title: prompts[column] ?? "" }, element("span", { class: "mt-prompt" }, prompts[column] ?? `${column + 1}`))))),
      element("tbody", {}, order.slice(0, this.rows).map((step) => element("tr", {}, element("th", { scope: "row" }, count(step)), columns.map((column) => cell(step, column))))),
    );
    const more = order.length - this.rows;
    this.whole.replaceChildren(table);
    if (more > 0) this.whole.append(button(say("list.more", { more }), () => ((this.rows += STEPS), this.show(samples, prompts, going))));
  }
}

/** Shows one sample as large as the window allows. @param {Sample} sample @param {string} label */
function enlarge(sample, label) {
  const close = button(say("close"), () => dialog.close(), { icon: "pi-times", only: true });
  const dialog = element("dialog", { class: "mt-large mt-look", "aria-label": label }, element("header", {}, element("span", {}, label), close), media(sample, label, true));
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
}
