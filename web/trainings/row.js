// @ts-check
// One row of the list. It is made once; what has changed of its job is set in it, so that what is focused or hovered stays and little is laid out.
import { button, element, setText } from "./element.js";
import { jobs, reorder, standing } from "./server.js";
import { count, duration, keys, known, moment, number, opening, say, translated } from "./words.js";

/** @typedef {import("./server.js").Job} Job */

const ICONS = /** @type {Record<string, string>} */ ({
  queued: "pi-clock", starting: "pi-spinner", running: "pi-play", saving: "pi-save", sampling: "pi-image", stopping: "pi-hourglass", paused: "pi-pause",
  finished: "pi-check", stopped: "pi-stop", failed: "pi-times", removed: "pi-minus", lost: "pi-question",
});

/** What a job is called. @param {Job} job */
export const title = (job) => job.name || (known(`kind.${job.verb}`) ? say(`kind.${job.verb}`) : say("kind.tool", { tool: job.tool }));

/** The verbs of jobs whose title has these words, where they have no name. @param {string} words in lower case */
export const verbsCalled = (words) => keys("kind.").filter((key) => say(key).toLowerCase().includes(words)).map((key) => key.replace("kind.", ""));

/** The state of a job as a badge: a sign and a word, so that no colour is needed to tell it. An old one is changed. @param {Job} job @param {HTMLElement} [old] */
export function badge(job, old) {
  const state = standing(job);
  const place = jobs.place(job);
  const text = state === "queued" && place !== null ? say("state.queued_at", { place: place + 1 }) : say(`state.${state}`);
  const made = old ?? element("span", {}, element("i", { "aria-hidden": "true" }), element("span"));
  const [icon, words] = /** @type {HTMLElement[]} */ ([...made.children]);
  setClass(made, `mt-badge mt-${state}`);
  setClass(icon, `pi ${ICONS[state] ?? "pi-circle"}`);
  setText(words, text);
  return made;
}

/** One line: loss first, then where it is and how long it takes; what it does at the moment last, where a narrow one is cut. @param {Job} job */
export function line(job) {
  const going = job.state !== "ended" && job.state !== "queued";
  const parts = [];
  if (job.loss !== null && job.kind === "training") parts.push(say("line.loss", { loss: number(job.average ?? job.loss) }));
  if (job.total) parts.push(`${count(job.step)} / ${count(job.total)}`);
  else if (job.step) parts.push(count(job.step));
  if (going && job.seconds_left) parts.push(say("line.left", { time: duration(job.seconds_left) }));
  if (going && job.phase && job.phase !== "training") parts.push(translated(job.phase));
  if (job.state === "ended") parts.push(moment(job.ended ?? job.created));
  if (job.state === "queued") parts.push(moment(job.created));
  return parts.join(" · ");
}

/** A bar that says how far a job is. An old one is changed. @param {Job} job @param {HTMLElement} [old] */
export function bar(job, old) {
  const share = job.total ? Math.min(1, job.step / job.total) : 0;
  const made = old ?? element("div", { role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": say("progress") }, element("div"));
  setClass(made, `mt-bar mt-${standing(job)}`);
  const percent = String(Math.round(share * 100));
  if (made.getAttribute("aria-valuenow") !== percent) made.setAttribute("aria-valuenow", percent);
  /** @type {HTMLElement} */ (made.firstElementChild).style.transform = `scaleX(${share.toFixed(3)})`; // drawn anew without a layout
  return made;
}

/** @param {HTMLElement} one @param {string} name */
function setClass(one, name) {
  if (one.className !== name) one.className = name;
}

export class Row {
  /** @param {string} id @param {(id: string) => void} open */
  constructor(id, open) {
    this.name = element("span", { class: "mt-name", dir: "auto" }); // the end of a long one is cut, in either direction of writing
    /** @type {HTMLElement | undefined} */
    this.badge = undefined;
    this.line = element("span", { class: "mt-line" });
    /** @type {HTMLElement | undefined} */
    this.bar = undefined;
    this.error = element("span", { class: "mt-error-line", dir: "auto" });
    this.head = element("span", { class: "mt-head" }, this.name);
    this.refused = ""; // why it was not moved in the queue
    this.open = element("button", { type: "button", class: "mt-open", "data-id": id, onclick: () => open(id) }, this.head, this.line, this.error);
    this.whole = element("div", { role: "listitem", class: "mt-item" }, this.open);
    /** @type {HTMLElement | undefined} */
    this.moves = undefined;
  }

  /** @param {Job} job */
  show(job) {
    setText(this.name, title(job));
    this.name.title = title(job);
    if (!this.badge) this.head.append((this.badge = badge(job)));
    else badge(job, this.badge);
    setText(this.line, line(job));
    if (job.state !== "ended" && job.state !== "queued" && job.total) {
      const bars = bar(job, this.bar);
      if (!this.bar) {
        bars.setAttribute("aria-hidden", "true"); // the line says it, and all of a button is read as its name
        this.line.after((this.bar = bars));
      }
    } else {
      this.bar?.remove();
      this.bar = undefined;
    }
    this._showError(job.outcome === "failed" && job.error ? translated(opening(job.error)) : job.state === "queued" ? this.refused : "");
    this._showOrder(job);
  }

  /** @param {string} error */
  _showError(error) {
    setText(this.error, error);
    this.error.title = error;
    this.error.hidden = !error;
  }

  /** Buttons to move a job in the queue. @param {Job} job */
  _showOrder(job) {
    const { waiting } = jobs.queue;
    const at = job.state === "queued" && waiting.length > 1 ? waiting.indexOf(job.id) : -1;
    if (at < 0) {
      this.moves?.remove();
      this.moves = undefined;
      return;
    }
    if (!this.moves) {
      const [up, down] = [say("queue.up"), say("queue.down")];
      this.moves = element("span", { class: "mt-order" }, button(up, () => this._move(job.id, -1), { icon: "pi-arrow-up", only: true }), button(down, () => this._move(job.id, 1), { icon: "pi-arrow-down", only: true }));
      for (const one of this.moves.children) one.setAttribute("aria-label", `${one.getAttribute("aria-label")}: ${title(job)}`);
      this.whole.append(this.moves);
    }
    const [up, down] = /** @type {HTMLButtonElement[]} */ ([...this.moves.children]);
    const held = [up, down].find((one) => one === document.activeElement);
    up.disabled = at === 0;
    down.disabled = at === waiting.length - 1;
    if (held?.disabled) (held === up ? down : up).focus(); // whoever moves it by keys can move it back
  }

  /** @param {string} id @param {number} by */
  async _move(id, by) {
    const { queue } = jobs;
    const wanted = queue.waiting.filter((one) => one !== id);
    wanted.splice(Math.max(0, queue.waiting.indexOf(id) + by), 0, id);
    this.refused = "";
    jobs.take({ queue: { ...queue, waiting: wanted } }); // at once: a second press goes on from there
    try {
      jobs.take(await reorder(wanted));
    } catch (error) {
      this.refused = error instanceof Error ? error.message : String(error);
      this._showError(this.refused);
      await jobs.load(); // meanwhile others may have changed the queue
    }
  }
}
