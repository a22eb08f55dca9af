// @ts-check
// The list of trainings: one row for each run (its newest job), or for each job that belongs to none.
import { app } from "../../../scripts/app.js";
import { button, element } from "./element.js";
import { Row, title, verbsCalled } from "./row.js";
import { EVERYTHING, jobs, standing } from "./server.js";
import { say } from "./words.js";

/**
 * @typedef {import("./server.js").Job} Job
 * @typedef {{ row: Row, job: Job, version: string, shown: string, seen: boolean }} Entry  what a row is to show and what it shows; whether it is in sight
 */

const SHOWN = 100;
const NEARLY = "200px"; // out of sight, and up to date nevertheless
const TYPED = 250; // milliseconds after the last key
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

const openTemplates = () => /** @type {any} */ (app.extensionManager).command.execute("Comfy.BrowseTemplates");

/** @param {Entry} entry */
function draw(entry) {
  if (entry.shown === entry.version) return;
  entry.shown = entry.version;
  entry.row.show(entry.job);
}

export class List {
  /** @param {(id: string) => void} open what to do with a chosen one */
  constructor(open) {
    this.open = open;
    this.limit = SHOWN;
    this._sought = ""; // the question that is on its way to the server
    this._seeking = 0;
    this._of = jobs.ends; // the list that it was asked for
    /** @type {Map<string, Entry>} */
    this.rows = new Map();
    /** @type {WeakMap<Element, Entry>} */
    this._entries = new WeakMap();
    this._sight = new IntersectionObserver((seen) => this._look(seen), { rootMargin: NEARLY });
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

  /** Shows what there is now. Rows of jobs that have not changed are left, and those out of sight until they come into it. */
  render() {
    if (!jobs.loaded) {
      this._say("pi-spinner pi-spin", say("list.loading"));
      return;
    }
    const question = this._question();
    this._seekBehind(question);
    const end = jobs.ends.get(question) ?? (jobs.complete || jobs.ends.has(question) ? null : jobs.ends.get(EVERYTHING) ?? null);
    const all = grouped(jobs.byId.values());
    const wanted = this.search.value.trim().toLowerCase();
    const kind = this.kind.value;
    const going = (/** @type {Job} */ job) => job.state !== "ended" && job.state !== "queued"; // what prepares a training, too
    const listed = (/** @type {Job} */ job) => end === null || job.id >= end || job.state !== "ended"; // others were found by another question
    const fits = (/** @type {Job} */ job) =>
      listed(job) &&
      (kind === "" || (kind === "training" && (job.kind === "training" || going(job))) || (kind === "active" && job.state !== "ended") || (kind === "failed" && ["failed", "lost"].includes(job.outcome ?? ""))) &&
      (!wanted || `${title(job)} ${job.id} ${job.architecture ?? ""}`.toLowerCase().includes(wanted));
    const found = all.filter(fits);
    const shown = found.slice(0, this.limit);
    this.tools.hidden = !all.length;
    if (jobs.problem) this._say("pi-exclamation-triangle", say("list.problem"), jobs.problem, button(say("again"), () => jobs.load(), { icon: "pi-refresh" }));
    else if (!found.length && this._sought) this._say("pi-spinner pi-spin", say("list.loading"));
    else if (!all.length || (!found.length && kind === "training" && !wanted)) this._say("pi-chart-line", say("list.empty"), say("list.empty.how"), button(say("list.empty.open"), openTemplates, { icon: "pi-th-large" }));
    else if (!found.length) this._say("pi-search", say("list.none"));
    else this.message.replaceChildren();

    const before = this.rows;
    this.rows = new Map();
    let order = false;
    shown.forEach((job, index) => {
      const version = `${job.version} ${standing(job)}${job.state === "queued" ? jobs.queue.waiting : ""}`;
      const entry = before.get(job.id) ?? this._made(job);
      Object.assign(entry, { job, version });
      if (entry.seen || !entry.shown) draw(entry);
      this.rows.set(job.id, entry);
      order ||= this.items.children[index] !== entry.row.whole;
    });
    for (const [id, entry] of before) if (!this.rows.has(id)) this._sight.unobserve(entry.row.whole);
    if (order || this.items.children.length !== shown.length) {
      const held = /** @type {HTMLElement | null} */ (document.activeElement); // a row that is moved loses it
      this.items.replaceChildren(...[...this.rows.values()].map(({ row }) => row.whole));
      if (held?.isConnected) held.focus();
    }
    this._foot(found.length, question, end);
  }

  /** What is to be listed, as the server is asked for it. What goes on is always known. */
  _question() {
    const find = this.search.value.trim().toLowerCase();
    const more = /** @type {Record<string, Record<string, string>>} */ ({ training: { kind: "training" }, failed: { outcome: "failed,lost" } });
    if (this.kind.value === "active") return EVERYTHING;
    return String(new URLSearchParams({ ...(find ? { find, verbs: verbsCalled(find).join() } : {}), ...more[this.kind.value] }));
  }

  /** Asks for what is meant among older jobs than those that are known. @param {string} question */
  _seekBehind(question) {
    const known = jobs.complete || jobs.ends.has(question) || !jobs.ends.has(EVERYTHING);
    if (!known && question === this._sought && jobs.ends === this._of) return;
    clearTimeout(this._seeking);
    this._sought = known ? "" : question;
    this._of = jobs.ends;
    if (!known) this._seeking = setTimeout(() => this._readOn(question), TYPED);
  }

  /** @param {string} question */
  async _readOn(question) {
    try {
      await jobs.readOn(question);
    } catch (error) {
      jobs.problem = error instanceof Error ? error.message : String(error);
      this.render();
    }
  }

  /** @param {Job} job @returns {Entry} */
  _made(job) {
    const entry = { row: new Row(job.id, this.open), job, version: "", shown: "", seen: false };
    this._entries.set(entry.row.whole, entry);
    this._sight.observe(entry.row.whole);
    return entry;
  }

  /** @param {IntersectionObserverEntry[]} changed */
  _look(changed) {
    for (const { target, isIntersecting } of changed) {
      const entry = this._entries.get(target);
      if (!entry) continue;
      entry.seen = isIntersecting;
      if (isIntersecting) draw(entry);
    }
  }

  /** @param {number} found @param {string} question @param {string | null} end */
  _foot(found, question, end) {
    const parts = [];
    if (found > this.limit) {
      parts.push(element("span", {}, say("list.shown", { shown: this.limit, all: end === null ? found : `${found}+` })));
      parts.push(button(say("list.more", { more: Math.min(SHOWN, found - this.limit) }), () => ((this.limit += SHOWN), this.render())));
    } else if (end !== null && !this._sought) {
      parts.push(button(say("list.older"), () => this._readOn(question), { icon: "pi-history" }));
    }
    const said = [question, ...parts.map((part) => part.textContent)].join();
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
    const at = all.indexOf(/** @type {HTMLElement} */ (document.activeElement?.closest(".mt-item")?.firstElementChild));
    event.preventDefault();
    all[Math.max(0, Math.min(all.length - 1, at + by))]?.focus();
  }
}

