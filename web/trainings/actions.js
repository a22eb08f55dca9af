// @ts-check
// What can be done with a job: asked of the server, which says in `can` what makes sense now.
import { app } from "../../../scripts/app.js";
import { askAgain } from "./dialog.js";
import { button, element } from "./element.js";
import { openMyWorkflow } from "./my_workflow.js";
import { address, goOn, jobs, request, tensorBoard, workflow } from "./server.js";
import { count, say, translated } from "./words.js";

/** @typedef {import("./server.js").Detail} Detail */

const REQUESTS = /** @type {[string, string][]} */ ([
  ["stop", "pi-stop"], ["pause", "pi-pause"], ["resume", "pi-play"], ["sample", "pi-image"], ["save", "pi-save"], ["stop_after_epoch", "pi-step-forward"], ["kill", "pi-ban"],
]);

const AT_A_STEP = ["pause", "sample", "save"]; // done at the end of the step that it is in, which may take minutes

/** What it is called to stop a job, and what comes of that. @param {Detail} job @returns {[string, string]} */
function stop(job) {
  if (job.state === "queued") return [say("do.unqueue"), say("do.unqueue.hint")];
  if (job.kind === "training" && job.engine === "builtin") return [say("do.stop"), say("do.stop.hint")];
  return [say("do.end"), say(`do.end.${job.kind === "training" || job.kind === "caching" ? job.kind : "tool"}`)];
}

export class Actions {
  /** @param {(id: string) => void} open shows another job @param {() => void} changed called when there is something new to read */
  constructor(open, changed) {
    this.open = open;
    this.changed = changed;
    this.buttons = element("div", { class: "mt-buttons", role: "group", "aria-label": say("actions") });
    this.ask = element("div");
    this.said = element("div", { class: "mt-said", role: "status" });
    this.whole = element("div", { class: "mt-actions" }, this.buttons, this.ask, this.said);
    this._shape = "";
    /** @type {{ id: string, step: number, text: string | null } | undefined} */
    this._asked = undefined;
    /** @type {HTMLElement | undefined} */
    this._link = undefined;
  }

  /** @param {Detail} job */
  show(job) {
    this.job = job;
    this._forget(job);
    const lora = [...job.files].reverse().find((file) => file.content === "lora" && file.url && file.exists);
    const begun = Boolean(job.step || lora) || job.outcome === "finished"; // of one whose events are gone no step is known
    const shape = JSON.stringify([job.id, job.can, job.cannot, job.state, job.outcome, job.workflow, job.run, lora?.file, begun]);
    if (shape === this._shape) return; // what is focused stays
    this._shape = shape;
    const ended = job.state === "ended";
    this.buttons.replaceChildren(
      ...REQUESTS.filter(([name]) => job.can.includes(name)).map(([name, icon]) => {
        const [label, title] = name === "stop" ? stop(job) : [say(`do.${name}`), say(`do.${name}.hint`)];
        const act = name === "kill" ? () => this._sure() : () => this._ask(job, name, label);
        return button(label, act, { icon, kind: name === "kill" ? "mt-danger" : name === "stop" ? "mt-first" : "", title });
      }),
      ...(ended && job.kind === "training" && job.run && job.engine === "builtin" ? this._further(job, begun) : []),
      ...(job.kind === "training" && job.run && begun ? [button(say("flow.open"), () => openMyWorkflow(job, (text, bad) => (this._tell(text, bad), this.changed())), { icon: "pi-images", title: say("flow.hint") })] : []),
      ...(lora?.url ? [element("a", { class: "mt-button", href: address(lora.url), download: lora.name, title: lora.name }, element("i", { class: "pi pi-download", "aria-hidden": "true" }), element("span", {}, say("do.download")))] : []),
      ...(job.kind === "training" && job.run && begun ? [button("TensorBoard", () => this._tensorBoard(job), { icon: "pi-chart-bar", title: say("do.tensorboard.hint") })] : []),
      ...(job.workflow ? [button(say("do.workflow"), () => this._workflow(job), { icon: "pi-sitemap" })] : []),
      button(say("do.copy_path"), () => this._copy(job.run_folder ?? job.folder), { icon: "pi-copy", title: job.run_folder ?? job.folder }),
    );
    if (job.cannot && !ended) this.buttons.append(element("span", { class: "mt-faint" }, translated(job.cannot)));
  }

  /** Further than it was to go, in what it counts in; and to that end where it has not come so far. @param {Detail} job @param {boolean} begun */
  _further(job, begun) {
    const again = (/** @type {string} */ label) => button(label, () => this._do(() => goOn(job.id, { steps: 0 }), say("said.queued"), true), { icon: "pi-play", kind: "mt-first" });
    if (!begun) return [again(say("do.queue_again"))]; // there may be nothing to continue
    const epochs = job.settings.some((one) => one.name === "max_train_epochs" && one.value);
    const end = epochs ? job.epochs : job.total;
    const unit = say(epochs ? "do.continue.epochs" : "do.continue.unit");
    const behind = job.outcome === "finished" || !end ? unit : say("do.continue.behind", { unit, end: count(end) });
    const more = element("input", { type: "number", min: "1", max: "1000000", step: "1", value: epochs ? "5" : "500", class: "mt-steps", "aria-label": behind });
    const further = button(say("do.continue"), () => {
      const wanted = Math.round(Number(more.value));
      if (wanted >= 1) this._do(() => goOn(job.id, epochs ? { epochs: wanted } : { steps: wanted }), say("said.queued"), true);
      else more.focus();
    }, { icon: "pi-forward" });
    const parts = [element("span", { class: "mt-joined" }, further, more, element("span", { class: "mt-unit" }, behind))];
    if (job.outcome !== "finished") parts.unshift(again(say("do.again")));
    return parts;
  }

  /** To end it at once is asked twice. */
  _sure() {
    const words = { question: say("kill.question"), yes: say("kill.yes"), icon: "pi-ban", no: say("kill.keep") };
    askAgain(this.ask, words, () => this.job && this._do(() => request(/** @type {Detail} */ (this.job).id, "kill"), say("said.asked", { what: say("do.kill") })));
  }

  /** @param {Detail} job @param {string} name @param {string} label what the button is called */
  async _ask(job, name, label) {
    const { step, paused } = this.job ?? job;
    await this._do(() => request(job.id, name), say(AT_A_STEP.includes(name) && !paused ? "said.asked_at_a_step" : "said.asked", { what: label }));
    this._asked = { id: job.id, step, text: this.said.textContent };
  }

  /** Words about a request go once it is done. @param {Detail} job */
  _forget(job) {
    if (!this._asked || (this._asked.id === job.id && this._asked.step === job.step && job.state !== "ended")) return;
    if (this.said.textContent === this._asked.text) this._tell("");
    this._asked = undefined;
  }

  /** @param {() => Promise<any>} act @param {string} text @param {boolean} [follow] whether to show the job that came of it */
  async _do(act, text, follow = false) {
    this._tell("…");
    try {
      const { job } = await act();
      if (job) jobs.take({ jobs: [job] });
      this._tell(text);
      if (follow && job) this.open(job.id);
    } catch (error) {
      this._tell(error instanceof Error ? error.message : String(error), true);
    }
  }

  /** @param {Detail} job */
  _workflow(job) {
    return this._do(async () => {
      const { workflow: graph, prompt } = await workflow(job.id);
      const name = job.name || job.id;
      if (graph) await app.loadGraphData(graph, true, true, name);
      else if (prompt) await /** @type {any} */ (app).loadApiJson(prompt, name);
      return {};
    }, say("said.opened"));
  }

  /** A link rather than a window: it takes seconds to start, after which browsers open none. @param {Detail} job */
  async _tensorBoard(job) {
    await this._do(async () => {
      const { address: url } = await tensorBoard(job.id);
      this._link = element("a", { href: url, target: "_blank", rel: "noopener" }, url);
      return {};
    }, say("said.tensorboard"));
    if (this._link) this.said.append(" ", this._link);
    this._link = undefined;
  }

  /** @param {string} path */
  _copy(path) {
    return this._do(async () => {
      await copied(path);
      return {};
    }, say("said.copied", { path }));
  }

  /** @param {string} text @param {boolean} [bad] */
  _tell(text, bad = false) {
    this.said.textContent = text;
    this.said.classList.toggle("mt-bad", bad);
  }
}

/** Puts text on the clipboard, also where the page has no right to it: ComfyUI on another machine, without https. Throws where no way works. @param {string} text */
export async function copied(text) {
  const refused = navigator.clipboard && isSecureContext ? await navigator.clipboard.writeText(text).then(() => false, () => true) : true;
  if (!refused) return;
  const box = element("textarea", { style: { position: "fixed", opacity: "0" } }, text);
  (document.querySelector("dialog[open]") ?? document.body).append(box); // what is outside of an open window cannot be selected
  box.select();
  const done = document.execCommand("copy");
  box.remove();
  if (!done) throw new Error(say("said.not_copied", { text }));
}
