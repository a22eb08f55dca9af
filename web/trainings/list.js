// @ts-check
// The list of trainings: one row for each run (its newest job), or for each job that belongs to none.
import { button, element } from "./element.js";
import { jobs, reorder, standing } from "./server.js";
import { duration, moment, number, say, count } from "./words.js";

/** @typedef {import("./server.js").Job} Job */

const SHOWN = 100;
const ICONS = /** @type {Record<string, string>} */ ({
  queued: "pi-clock", starting: "pi-spinner", running: "pi-play", saving: "pi-save", sampling: "pi-image", stopping: "pi-hourglass", paused: "pi-pause",
  finished: "pi-check", stopped: "pi-stop", failed: "pi-times", removed: "pi-minus", lost: "pi-question",
});

/** The state of a job as a badge: a sign and a word, so that no colour is needed to tell it. @param {Job} job */
export function badge(job) {
  const state = standing(job);
  const place = jobs.place(job);
  const text = state === "queued" && place !== null ? say("state.queued_at", { place: place + 1 }) : say(`state.${state}`);
  return element("span", { class: `mt-badge mt-${state}` }, element("i", { class: `pi ${ICONS[state] ?? "pi-circle"}`, "aria-hidden": "true" }), text);
}

/** What a job is called. @param {Job} job */
export const title = (job) => job.name || say(`kind.${job.kind}`);

/** One line: loss first, then where it is and how long it takes. @param {Job} job */
export function line(job) {
  const going = job.state !== "ended" && job.state !== "queued";
  const parts = [];
  if (job.loss !== null && job.kind === "training") parts.push(say("line.loss", { loss: number(job.average ?? job.loss) }));
  if (job.total) parts.push(`${count(job.step)} / ${count(job.total)}`);
  else if (job.step) parts.push(count(job.step));
  if (going && job.phase && job.phase !== "training") parts.push(job.phase);
  if (going && job.seconds_left) parts.push(say("line.left", { time: duration(job.seconds_left) }));
  if (job.state === "ended") parts.push(moment(job.ended ?? job.created));
  if (job.state === "queued") parts.push(moment(job.created));
  return parts.join(" · ");
}

/** A bar that says how far a job is. @param {Job} job */
export function bar(job) {
  const share = job.total ? Math.min(1, job.step / job.total) : 0;
  return element(
    "div",
    { class: `mt-bar mt-${standing(job)}`, role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.round(share * 100)), "aria-label": say("progress") },
    element("div", { style: { width: `${share * 100}%` } }),
  );
}

/** Newest job of each run first to last; what goes on or waits comes before what has ended. @param {Iterable<Job>} all @returns {Job[]} */
export function grouped(all) {
  /** @type {Map<string, Job>} */
  const newest = new Map();
  for (const job of all) {
    const key = job.run ?? job.id;
    const had = newest.get(key);
    const ahead = (/** @type {Job} */ one) => (one.state === "ended" ? 0 : 1);
    if (!had || ahead(job) > ahead(had) || (ahead(job) === ahead(had) && job.created > had.created)) newest.set(key, job);
  }
  const rank = (/** @type {Job} */ job) => (job.state === "ended" ? 2 : job.state === "queued" ? 1 : 0);
  return [...newest.values()].sort((a, b) => rank(a) - rank(b) || (jobs.place(a) ?? 0) - (jobs.place(b) ?? 0) || b.created - a.created);
}

export class List {
  /** @param {(id: string) => void} open what to do with a chosen one */
  constructor(open) {
    this.open = open;
    this.limit = SHOWN;
    /** @type {Map<string, { row: HTMLElement, version: string }>} */
    this.rows = new Map();
    this.search = element("input", {
      type: "search", class: "mt-search", placeholder: say("list.search"), "aria-label": say("list.search"),
      oninput: () => this.render(),
    });
    this.kind = element(
      "select",
      { class: "mt-select", "aria-label": say("list.kind"), onchange: () => this.render() },
      ["training", "", "active", "failed"].map((value) => element("option", { value }, say(`list.kind.${value || "all"}`))),
    );
    this.items = element("div", { class: "mt-items", role: "list", "aria-label": say("tab") });
    this.message = element("div", { class: "mt-message" });
    this.foot = element("div", { class: "mt-foot" });
    this.tools = element("div", { class: "mt-tools" }, this.search, this.kind);
    this.whole = element("div", { class: "mt-list" }, this.tools, this.message, this.items, this.foot);
    this.items.addEventListener("keydown", (event) => this._walk(event));
  }

  /** @param {Set<string> | null} changed ids; null: everything may have */
  render(changed = null) {
    if (!jobs.loaded) {
      this._say("pi-spinner pi-spin", say("list.loading"));
      return;
    }
    const all = grouped(jobs.byId.values());
    const wanted = this.search.value.trim().toLowerCase();
    const kind = this.kind.value;
    const fits = (/** @type {Job} */ job) =>
      (kind === "" || (kind === "training" && job.kind === "training") || (kind === "active" && job.state !== "ended") || (kind === "failed" && ["failed", "lost"].includes(job.outcome ?? ""))) &&
      (!wanted || `${title(job)} ${job.id} ${job.architecture ?? ""}`.toLowerCase().includes(wanted));
    const found = all.filter(fits);
    const shown = found.slice(0, this.limit);
    this.tools.hidden = !all.length;
    if (jobs.problem) this._say("pi-exclamation-triangle", say("list.problem"), jobs.problem, button(say("again"), () => jobs.load(), { icon: "pi-refresh" }));
    else if (!all.length || (!found.length && kind === "training" && !wanted)) this._say("pi-chart-line", say("list.empty"), say("list.empty.how"));
    else if (!found.length) this._say("pi-search", say("list.none"));
    else this.message.replaceChildren();

    const focused = this.items.contains(document.activeElement) ? /** @type {HTMLElement} */ (document.activeElement).dataset.id : undefined;
    const before = this.rows;
    this.rows = new Map();
    let order = false;
    shown.forEach((job, index) => {
      const version = `${job.version} ${jobs.place(job)} ${standing(job)}`;
      const known = before.get(job.id);
      const entry = known && known.version === version && !(changed === null && jobs.problem) ? known : { row: this._row(job, known?.row), version };
      this.rows.set(job.id, entry);
      order ||= this.items.children[index] !== entry.row;
    });
    if (order || this.items.children.length !== shown.length) this.items.replaceChildren(...[...this.rows.values()].map(({ row }) => row));
    if (focused) /** @type {HTMLElement | null} */ (this.items.querySelector(`[data-id="${CSS.escape(focused)}"]`))?.focus();
    this._foot(found.length);
  }

  /** A row; an old one is filled anew, so that what is focused or hovered stays. @param {Job} job @param {HTMLElement} [row] */
  _row(job, row) {
    row ??= element("div", { role: "listitem", class: "mt-item" });
    let open = /** @type {HTMLButtonElement | null} */ (row.querySelector(".mt-open"));
    if (!open) {
      open = element("button", { type: "button", class: "mt-open", "data-id": job.id, onclick: () => this.open(job.id) });
      row.append(open);
    }
    const going = job.state !== "ended" && job.state !== "queued";
    open.replaceChildren(
      element("span", { class: "mt-head" }, element("span", { class: "mt-name" }, title(job)), badge(job)),
      element("span", { class: "mt-line" }, line(job)),
      ...(going && job.total ? [bar(job)] : []),
      ...(job.outcome === "failed" && job.error ? [element("span", { class: "mt-error-line" }, job.error.split("\n")[0])] : []),
    );
    row.querySelector(".mt-order")?.remove();
    const waiting = jobs.queue.waiting;
    if (job.state === "queued" && waiting.length > 1) row.append(this._order(job, waiting));
    return row;
  }

  /** @param {Job} job @param {string[]} waiting */
  _order(job, waiting) {
    const at = waiting.indexOf(job.id);
    const move = async (/** @type {number} */ by) => {
      const order = waiting.filter((id) => id !== job.id);
      order.splice(at + by, 0, job.id);
      const { queue } = await reorder(order);
      jobs.take({ queue });
    };
    const up = button(say("queue.up"), () => move(-1), { icon: "pi-arrow-up", only: true });
    const down = button(say("queue.down"), () => move(1), { icon: "pi-arrow-down", only: true });
    up.disabled = at <= 0;
    down.disabled = at < 0 || at === waiting.length - 1;
    return element("span", { class: "mt-order" }, up, down);
  }

  /** @param {number} found */
  _foot(found) {
    const parts = [];
    if (found > this.limit) {
      parts.push(element("span", {}, say("list.shown", { shown: this.limit, all: found })));
      parts.push(button(say("list.more", { more: Math.min(SHOWN, found - this.limit) }), () => ((this.limit += SHOWN), this.render())));
    } else if (jobs.more) {
      parts.push(button(say("list.older"), () => jobs.loadOlder(), { icon: "pi-history" }));
    }
    const said = parts.map((part) => part.textContent).join();
    if (this.foot.dataset.said !== said) {
      this.foot.dataset.said = said;
      this.foot.replaceChildren(...parts);
    }
  }

  /** @param {string} icon @param {string} text @param {...(string | Node)} more */
  _say(icon, text, ...more) {
    this.message.replaceChildren(
      element("i", { class: `pi ${icon} mt-sign`, "aria-hidden": "true" }),
      element("p", {}, text),
      ...more.map((one) => (typeof one === "string" ? element("p", { class: "mt-faint" }, one) : one)),
    );
  }

  /** Arrow keys go from row to row. @param {KeyboardEvent} event */
  _walk(event) {
    const steps = /** @type {Record<string, number>} */ ({ ArrowDown: 1, ArrowUp: -1 });
    const by = steps[event.key];
    if (!by) return;
    const all = /** @type {HTMLElement[]} */ ([...this.items.querySelectorAll(".mt-open")]);
    const at = all.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    event.preventDefault();
    all[Math.max(0, Math.min(all.length - 1, at + by))]?.focus();
  }
}

