// @ts-check
// What trainings and jobs take on the disk, in a window, to choose what goes. What is being trained or waits cannot be chosen.
import { askAgain, openDialog } from "./dialog.js";
import { button, element, setText } from "./element.js";
import { ask, jobs } from "./server.js";
import { moment, say, size, translated } from "./words.js";

/** @typedef {{ run: string, name: string, bytes: number, states: number, loras: number, samples: number, modified: number, jobs: string[], busy: boolean }} Run */
/** @typedef {{ jobs: { count: number, bytes: number }, runs: Run[] }} Storage */

const MOST = 5000; // jobs that are asked for

class Cleaning {
  constructor() {
    this.said = element("div", { class: "mt-said", role: "status", tabindex: "-1" });
    this.list = element("div", { class: "mt-storage" }, element("p", { class: "mt-faint" }, say("storage.loading")));
    this.all = element("input", { type: "checkbox", class: "musubi-all", disabled: true, onchange: () => this._chooseAll() });
    this.sum = element("span", {}, say("storage.all"));
    this.states = element("input", { type: "checkbox", class: "musubi-states-only", onchange: () => this._count() });
    this.go = button(say("storage.remove"), () => this._sure(), { icon: "pi-trash", kind: "mt-danger" });
    this.go.disabled = true;
    this.ask = element("div");
    /** @type {Map<HTMLInputElement, Run | string[]>} runs, or the jobs that belong to none */
    this.boxes = new Map();
  }

  async read() {
    /** @type {[Storage, { jobs: import("./server.js").Job[] }]} */
    const [storage, { jobs: all }] = await Promise.all([ask("storage"), ask(`jobs?limit=${MOST}`)]);
    const runs = new Set(storage.runs.map((run) => run.run));
    const loose = all.filter((job) => job.state === "ended" && !runs.has(job.run ?? "")).map((job) => job.id);
    this.boxes.clear();
    const row = (/** @type {Run | string[]} */ what, /** @type {string} */ name, /** @type {string} */ facts, busy = false) => {
      const box = element("input", { type: "checkbox", disabled: busy, onchange: () => this._count() });
      this.boxes.set(box, what);
      return element("label", { class: busy ? "mt-gone" : "" }, box, element("span", { class: "mt-file", dir: "auto" }, name), element("span", { class: "mt-faint" }, facts));
    };
    this.list.replaceChildren(
      ...storage.runs.sort((a, b) => b.bytes - a.bytes).map((run) => row(run, run.name, [size(run.bytes), say("storage.run", { states: run.states, loras: run.loras, samples: run.samples }), moment(run.modified), run.busy ? say("storage.busy") : ""].filter(Boolean).join(" · "), run.busy)),
      ...(loose.length ? [row(loose, say("storage.jobs"), say("storage.jobs.count", { jobs: loose.length }))] : []),
      ...(storage.runs.length || loose.length ? [] : [element("p", { class: "mt-faint" }, say("storage.none"))]),
    );
    this._count();
  }

  _chosen() {
    const chosen = [...this.boxes].filter(([box]) => box.checked).map(([, what]) => what);
    return { runs: /** @type {Run[]} */ (chosen.filter((what) => !Array.isArray(what))), jobs: this.states.checked ? [] : /** @type {string[]} */ (chosen.filter(Array.isArray).flat()) };
  }

  _chooseAll() {
    for (const box of this.boxes.keys()) box.checked = this.all.checked && !box.disabled;
    this._count();
  }

  _count() {
    const { runs, jobs: loose } = this._chosen();
    const able = [...this.boxes.keys()].filter((box) => !box.disabled);
    const chosen = able.filter((box) => box.checked);
    this.all.disabled = !able.length;
    this.all.checked = able.length > 0 && chosen.length === able.length;
    this.all.indeterminate = chosen.length > 0 && !this.all.checked;
    setText(this.sum, chosen.length ? say("storage.chosen", { chosen: chosen.length, size: size(runs.reduce((sum, run) => sum + run.bytes, 0)) }) : say("storage.all"));
    this.go.disabled = !runs.length && !loose.length;
    this.ask.replaceChildren();
  }

  /** What is removed is gone, so it is asked twice. */
  _sure() {
    const { runs, jobs: loose } = this._chosen();
    const question = say(this.states.checked ? "storage.question.states" : "storage.question", { runs: runs.length, jobs: loose.length });
    askAgain(this.ask, { question, yes: say("storage.remove"), icon: "pi-trash", no: say("storage.keep") }, () => this._remove());
  }

  async _remove() {
    const { runs, jobs: loose } = this._chosen();
    this.go.disabled = true;
    this.said.textContent = "…";
    this.said.focus();
    try {
      const { bytes, kept } = await ask("clean", { runs: runs.map((run) => run.run), jobs: loose, states_only: this.states.checked });
      this.said.textContent = [say("storage.removed", { size: size(bytes) }), ...kept.map((/** @type {{ id: string, reason: string }} */ one) => `${one.id}: ${translated(one.reason)}`)].join("\n");
      await Promise.all([this.read(), jobs.load()]);
    } catch (error) {
      this.said.textContent = /** @type {Error} */ (error).message;
    }
  }
}

/** Opens the window. */
export function openStorage() {
  const cleaning = new Cleaning();
  openDialog(
    say("storage"),
    "",
    element("label", {}, cleaning.all, " ", cleaning.sum),
    cleaning.list,
    element("label", {}, cleaning.states, " ", say("storage.states_only")),
    element("p", { class: "mt-faint" }, say("storage.hint")),
    element("div", { class: "mt-buttons" }, cleaning.go),
    cleaning.ask,
    cleaning.said,
  );
  cleaning.read().catch((error) => {
    cleaning.list.replaceChildren();
    cleaning.said.textContent = error.message;
  });
}
