// @ts-check
// One training: how it goes, its curves, its samples, files, settings and log, and what can be done with it.
import { Actions, copied } from "./actions.js";
import { Chart } from "./chart.js";
import { joined } from "./curves.js";
import { button, element, setText } from "./element.js";
import { Gallery, underPrompts } from "./gallery.js";
import { Items } from "./items.js";
import { grouped } from "./list.js";
import { Log } from "./log.js";
import { Pieces } from "./pieces.js";
import { badge, bar, title } from "./row.js";
import { Earlier, jobsOfRun } from "./run.js";
import { address, detail, jobs, standing } from "./server.js";
import { steadily } from "./steadily.js";
import { count, duration, known, moment, number, pace, say, size, translated } from "./words.js";

/**
 * @typedef {import("./server.js").Detail} Detail
 * @typedef {import("./server.js").Job} Job
 */

const POINTS = 800;
const MOST_JOBS = 12; // of a run, in one curve
const MOST_RUNS = 5; // next to it
const LOSSES = ["loss", "validation"];
const OF_ALL = ["files", "log"]; // tabs that are for jobs of every kind; the others are for trainings
const SECOND = /** @type {Record<string, (value: number | null | undefined) => string>} */ ({ lr: number, seconds: (value) => `${number(value)} s`, vram: size, ram: size, validation: number });
const REMEMBERED = "MusubiTuner.Trainings."; // in the browser: how somebody likes the charts

export class DetailView {
  /** @param {string} id @param {(id: string | null) => void} open shows another job, or the list */
  constructor(id, open) {
    this.id = id;
    this.open = open;
    /** @type {Detail | null} */
    this.job = null;
    this.pieces = new Pieces(POINTS);
    /** @type {Map<string, { label: string, jobs: string[] }>} */
    this.compared = new Map();
    this.earlier = new Earlier();
    /** @type {Detail[]} the jobs of its run, oldest first, itself the last */
    this.run = [];
    this._ended = false;
    this.update = steadily(() => this._read(), (error) => this._problem(error));
    const log = remembered("log") === "1";
    this.loss = new Chart({ title: say("chart.loss"), height: 210, log });
    this.loss.smoothing = Number(remembered("smoothing") ?? 0.9);
    this.second = new Chart({ title: say("chart.lr"), height: 110 });
    this.second.smoothing = 0;
    this.second.hint = false;
    this.actions = new Actions((id) => this.open(id), () => this.update.ask());
    this.gallery = new Gallery();
    this.items = new Items();
    this.log = new Log(this.id);
    this.which = element("select", { class: "mt-select", "aria-label": say("chart.second"), onchange: () => (remember("second", this.which.value), this._draw()) });
    this.with = element("div", { class: "mt-with" });
    this.compare = element("details", { class: "mt-compare", ontoggle: () => this._offer() }, element("summary", {}, say("compare")), this.with);
    this.under = element("div", {}, element("div", { class: "mt-tools" }, this.which), this.second.whole);
    this.tab = "";
    /** @type {(name: string) => void} which tab is shown */
    this._choose = () => {};
    /** @type {Record<string, HTMLElement>} */
    this.tabButtons = {};
    this.name = element("h2", { class: "mt-title", dir: "auto", tabindex: "-1" });
    this.state = element("span", { role: "status" });
    this.now = element("div", { class: "mt-now" });
    this.how = element("div", { class: "mt-how", role: "status" }); // it is there before it says something, or that is not read out
    this.facts = element("dl", { class: "mt-facts" });
    this.curves = this._curves(log);
    this.files = element("div", { class: "mt-files" });
    this.settings = element("div", { class: "mt-settings" });
    this.tabs = this._tabs([["samples", this.gallery.whole], ["items", this.items.whole], ["files", this.files], ["settings", this.settings], ["log", this.log.whole]]);
    this.whole = element(
      "section",
      { class: "mt-detail", "aria-label": say("detail"), "data-job": this.id },
      element("header", {}, button(say("back"), () => this.open(null), { icon: "pi-arrow-left", only: true }), this.name, this.state),
      this.how,
      this.now,
      this.actions.whole,
      element("div", { class: "mt-columns" }, element("div", {}, this.curves, this.facts), element("div", {}, this.tabs)),
    );
  }

  /** @param {boolean} log */
  _curves(log) {
    const toggle = button(say("chart.log"), () => {
      this.loss.setLog(!this.loss.log);
      toggle.setAttribute("aria-pressed", String(this.loss.log));
      remember("log", this.loss.log ? "1" : "0");
    });
    toggle.setAttribute("aria-pressed", String(log));
    const smoothing = element("input", {
      type: "range", min: "0", max: "0.99", step: "0.01", value: String(this.loss.smoothing), "aria-label": say("chart.smoothing"), title: say("chart.smoothing"),
      oninput: () => (this.loss.setSmoothing(Number(smoothing.value)), remember("smoothing", smoothing.value)),
    });
    return element(
      "div",
      { class: "mt-curves" },
      element("div", { class: "mt-tools" }, element("h3", {}, say("chart.loss")), element("label", { class: "mt-smooth" }, say("chart.smoothing"), smoothing), toggle, button(say("chart.all"), () => (this.loss.seeAll(), this.second.seeAll()), { icon: "pi-search-minus", only: true })),
      this.loss.whole,
      this.compare,
      this.under,
    );
  }

  /** Tabs as screen readers know them: arrow keys change between them. @param {[string, HTMLElement][]} parts */
  _tabs(parts) {
    const tabs = parts.map(([name]) => element("button", { type: "button", role: "tab", id: `mt-tab-${name}`, "aria-controls": `mt-panel-${name}`, onclick: () => chosen(name) }, say(`tab.${name}`)));
    const panels = parts.map(([name, inside]) => element("div", { role: "tabpanel", id: `mt-panel-${name}`, "aria-labelledby": `mt-tab-${name}`, class: "mt-panel" }, inside));
    this._choose = (/** @type {string} */ wanted) => {
      parts.forEach(([name], index) => {
        tabs[index].setAttribute("aria-selected", String(name === wanted));
        tabs[index].tabIndex = name === wanted ? 0 : -1;
        panels[index].hidden = name !== wanted;
      });
      this.tab = wanted;
      if (wanted === "log") this.log.toEnd();
    };
    const chosen = (/** @type {string} */ name) => (remember("tab", name), this._choose(name));
    const row = element("div", { class: "mt-tabs", role: "tablist", "aria-label": say("detail.more") }, tabs);
    row.addEventListener("keydown", (event) => {
      const by = /** @type {Record<string, number>} */ ({ ArrowRight: 1, ArrowLeft: -1 })[event.key];
      if (!by) return;
      event.preventDefault();
      const there = tabs.filter((tab) => !tab.hidden);
      const next = there[(there.findIndex((tab) => tab.tabIndex === 0) + by + there.length) % there.length];
      chosen(parts[tabs.indexOf(next)][0]);
      next.focus();
    });
    this._choose(parts.some(([name]) => name === remembered("tab")) ? String(remembered("tab")) : "samples");
    this.tabButtons = Object.fromEntries(parts.map(([name], index) => [name, tabs[index]]));
    return element("div", { class: "mt-more" }, row, panels);
  }

  end() {
    this._ended = true;
    this.update.end();
    this.loss.end();
    this.second.end();
  }

  async _read() {
    const job = await detail(this.id);
    if (this._ended) return;
    const own = jobsOfRun(job, MOST_JOBS);
    const whole = await this.earlier.read(job, own);
    if (this._ended) return;
    this.job = job;
    this.run = whole;
    this._show(job);
    const names = ["loss", ...Object.keys(SECOND)].filter((name) => job.series.includes(name));
    if (names.length) await this.pieces.read(own, names);
    for (const { jobs: compared } of this.compared.values()) await this.pieces.read(compared, LOSSES);
    if (this._ended) return;
    this._draw();
    this.log.begin(job.log);
    if (this.tab === "log" && job.state !== "ended") await this.log.follow();
  }

  /** @param {unknown} error */
  _problem(error) {
    const text = error instanceof Error ? error.message : String(error);
    const gone = /** @type {any} */ (error)?.status === 404;
    this.how.replaceChildren(element("div", { class: "mt-banner mt-bad", role: "alert" }, element("p", {}, gone ? say("detail.gone") : say("list.problem")), element("p", { class: "mt-faint" }, text), gone ? button(say("back"), () => this.open(null)) : button(say("again"), () => this.update.ask(), { icon: "pi-refresh" })));
  }

  /** @param {Detail} job */
  _show(job) {
    setText(this.name, title(job));
    this.name.title = title(job);
    const old = /** @type {HTMLElement | null} */ (this.state.firstElementChild);
    if (old) badge(job, old);
    else this.state.append(badge(job));
    this._showHow(job);
    this._showNow(job);
    this.actions.show(job);
    this._showTabs(job);
    const { prompts, samples } = underPrompts(this.run);
    const made = job.workflow_samples ?? [];
    this.gallery.show(samples, prompts, job.state !== "ended", made);
    const number = samples.length + made.reduce((sum, one) => sum + one.files.length, 0);
    setText(this.tabButtons.samples, number ? `${say("tab.samples")} ${number}` : say("tab.samples"));
    this.items.show(job.items);
    this._showFacts(job);
    this._showFiles(job);
    this._showSettings(job);
  }

  /** What became of it, and what went wrong. @param {Detail} job */
  _showHow(job) {
    const state = standing(job);
    const place = jobs.place(job);
    const said = `${state} ${job.state === "ended" ? job.text : ""} ${job.error} ${job.answers.length} ${place} ${jobs.queue.waiting.length}`;
    if (this.how.dataset.said === said) return;
    this.how.dataset.said = said;
    const refused = job.state === "ended" ? undefined : job.answers.filter((one) => one.answer === "ignored").pop();
    const parts = [];
    if (state === "failed") {
      const error = job.error || job.text;
      const [first, ...rest] = translated(error).split("\n");
      parts.push(element("div", { class: "mt-banner mt-bad", role: "alert" }, element("p", {}, element("b", {}, say("how.failed"), " "), first), rest.length ? element("pre", {}, rest.join("\n")) : null, button(say("copy"), () => copied(error), { icon: "pi-copy" })));
    } else if (job.state === "ended" && (job.text || known(`how.${state}`))) {
      parts.push(element("div", { class: `mt-banner mt-${state}` }, element("p", {}, job.text ? translated(job.text) : say(`how.${state}`)), state === "lost" && job.step && job.kind === "training" ? element("p", {}, say("how.lost.more")) : null));
    } else if (state === "queued") {
      parts.push(element("div", { class: "mt-banner" }, element("p", {}, place === null ? say("how.queued") : say("how.queued_at", { place: place + 1, all: jobs.queue.waiting.length }))));
    }
    if (job.attempt > 1) parts.push(element("p", { class: "mt-faint" }, say("how.attempt", { attempt: job.attempt })));
    if (refused) parts.push(element("p", { class: "mt-said mt-bad" }, `${say(`do.${refused.name}`)}: ${translated(refused.text)}`));
    this.how.replaceChildren(...parts);
  }

  /** Only those in which there can be something. @param {Detail} job */
  _showTabs(job) {
    for (const [name, tab] of Object.entries(this.tabButtons)) tab.hidden = job.kind !== "training" && !OF_ALL.includes(name);
    if (this.tabButtons[this.tab].hidden) this._choose(OF_ALL[0]);
  }

  /** The numbers that people look for first. @param {Detail} job */
  _showNow(job) {
    const going = job.state !== "ended" && job.state !== "queued";
    const big = (/** @type {string} */ name, /** @type {string} */ value, more = "") => element("div", { class: "mt-number" }, element("span", { class: "mt-faint" }, name), element("b", {}, value), more ? element("span", { class: "mt-faint" }, more) : null);
    const numbers = [];
    if (job.kind === "training" && job.loss !== null) numbers.push(big(say("now.loss"), number(job.average ?? job.loss), job.average === null ? "" : say("now.average")));
    if (job.step || job.total) numbers.push(big(say("now.step"), count(job.step), job.total ? say("now.of", { total: count(job.total) }) : ""));
    if (going && job.seconds_left !== null) numbers.push(big(say("now.left"), duration(job.seconds_left), job.seconds_per_step ? pace(job.seconds_per_step) : ""));
    else if (!going && job.started && job.ended) numbers.push(big(say("now.took"), duration(job.ended - job.started), job.seconds_per_step ? pace(job.seconds_per_step) : ""));
    this.now.replaceChildren(element("div", { class: "mt-numbers" }, numbers), ...(going && job.total ? [bar(job)] : []), ...(going && job.phase && job.phase !== "training" && !job.paused ? [element("div", { class: "mt-faint mt-phase" }, translated(job.phase))] : []));
  }

  /** @param {Detail} job */
  _showFacts(job) {
    const facts = /** @type {[string, string][]} */ ([
      ["epoch", job.epoch === null ? "" : `${job.epoch}${job.epochs ? ` / ${job.epochs}` : ""}`],
      ["lr", job.lr === null ? "" : number(job.lr)],
      ["pace", pace(job.seconds_per_step)],
      ["began", job.first_step ? say("fact.began_at", { step: count(job.first_step) }) : ""],
      ["started", moment(job.started)],
      ["ended", moment(job.ended)],
      ["gpus", job.gpus?.join(", ") ?? ""],
      ["where", job.state === "ended" ? "" : say(job.background ? "fact.background" : job.kind === "training" ? "fact.here" : "fact.here.tool")],
      ["engine", job.engine === "builtin" ? "" : job.engine],
      ["folder", job.run_folder ?? job.folder],
    ]);
    this.facts.replaceChildren(...facts.filter(([, value]) => value).flatMap(([name, value]) => [element("dt", {}, say(`fact.${name}`)), element("dd", {}, value)]));
  }

  /** @param {Detail} job */
  _showFiles(job) {
    const said = JSON.stringify(job.files);
    if (this.files.dataset.said === said) return;
    this.files.dataset.said = said;
    const rows = job.files.filter((file) => file.content !== "sample").reverse();
    if (!rows.length) {
      this.files.replaceChildren(element("p", { class: "mt-faint" }, say("files.none")));
      return;
    }
    this.files.replaceChildren(
      element("ul", { "aria-label": say("tab.files") }, rows.map((file) => element("li", { class: file.exists ? "" : "mt-gone" },
        element("span", { class: "mt-file" }, file.name),
        element("span", { class: "mt-faint" }, [known(`content.${file.content}`) ? say(`content.${file.content}`) : file.content, file.step === null ? "" : say("chart.step", { step: count(file.step) }), size(file.bytes), file.exists ? "" : say("gallery.gone")].filter(Boolean).join(" · ")),
        file.url && file.exists ? element("a", { class: "mt-button", href: address(file.url), download: file.name, "aria-label": `${say("do.download_file")} ${file.name}`, title: say("do.download_file") }, element("i", { class: "pi pi-download", "aria-hidden": "true" })) : null))),
    );
  }

  /** @param {Detail} job */
  _showSettings(job) {
    const said = JSON.stringify([job.settings, job.optimizer]);
    if (this.settings.dataset.said === said) return;
    this.settings.dataset.said = said;
    const text = (/** @type {any} */ value) => (value === null || value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
    this.settings.replaceChildren(
      job.settings.length
        ? element("table", { "aria-label": say("tab.settings") }, element("thead", {}, element("tr", {}, ["setting", "value", "default"].map((name) => element("th", { scope: "col" }, say(`settings.${name}`))))), element("tbody", {}, job.settings.map((one) => element("tr", {}, element("th", { scope: "row" }, one.name), element("td", {}, text(one.value)), element("td", { class: "mt-faint" }, text(one.default))))))
        : element("p", { class: "mt-faint" }, say("settings.none")),
      ...(job.optimizer
        ? [element("h3", {}, say("settings.optimizer", { step: count(job.optimizer.step) })), element("ul", { class: "mt-optimizer", "aria-label": say("settings.optimizer", { step: count(job.optimizer.step) }) }, job.optimizer.lines.map((line) => element("li", {}, line)))]
        : []),
    );
  }

  /** Other trainings, to be laid over this one. */
  _offer() {
    if (!this.compare.open) return;
    const others = grouped([...jobs.byId.values()].filter((job) => job.kind === "training" && (job.run ?? job.id) !== (this.job?.run ?? this.id))).slice(0, 50);
    this.with.replaceChildren(
      ...(others.length ? [] : [element("p", { class: "mt-faint" }, say("compare.none"))]),
      ...others.map((job) => {
        const key = job.run ?? job.id;
        const box = element("input", {
          type: "checkbox", checked: this.compared.has(key),
          onchange: async () => {
            if (!box.checked) this.compared.delete(key);
            else if (this.compared.size >= MOST_RUNS) box.checked = false;
            else {
              const all = [...jobs.byId.values()].filter((one) => (one.run ?? one.id) === key).sort((a, b) => a.created - b.created);
              this.compared.set(key, { label: title(job), jobs: all.map((one) => one.id).slice(-MOST_JOBS) });
              await this.pieces.read(all.map((one) => one.id).slice(-MOST_JOBS), LOSSES).catch((error) => this._problem(error));
            }
            this._draw();
          },
        });
        return element("label", {}, box, title(job), element("span", { class: "mt-faint" }, moment(job.created)));
      }),
    );
  }

  _draw() {
    const job = this.job;
    if (!job) return;
    const own = jobsOfRun(job, MOST_JOBS);
    const of = (/** @type {string[]} */ ids, /** @type {string} */ name) => joined(this.pieces.of(ids), name);
    const some = (/** @type {import("./curves.js").Curve} */ curve) => curve.mean.some((value) => value !== null);
    const marks = this.run.flatMap(({ saves, samples }) => [
      ...saves.map(({ step }) => ({ step, kind: /** @type {const} */ ("save") })),
      ...[...new Set(samples.map(({ step }) => step))].map((step) => ({ step, kind: /** @type {const} */ ("sample") })),
    ]);
    const runs = [{ label: title(job), jobs: own }, ...this.compared.values()];
    const validated = runs.map(({ label, jobs: ids }, at) => ({ label: runs.length > 1 ? `${label}: ${say("chart.validation")}` : say("chart.validation"), curve: of(ids, "validation"), of: at }));
    const lines = [...runs.map(({ label, jobs: ids }) => ({ label, curve: of(ids, "loss") })), ...validated.filter(({ curve }) => some(curve))];
    this.curves.hidden = !lines.some(({ curve }) => some(curve));
    if (this.curves.hidden) return;
    this.loss.show(lines, marks);
    const names = Object.keys(SECOND).filter((name) => some(of(own, name)));
    this.under.hidden = !names.length;
    if (!names.length) return;
    if ([...this.which.options].map((one) => one.value).join() !== names.join()) {
      const chosen = this.which.value || remembered("second") || names[0];
      this.which.replaceChildren(...names.map((name) => element("option", { value: name }, say(`chart.${name}`))));
      this.which.value = names.includes(chosen) ? chosen : names[0];
    }
    this.second.title = say(`chart.${this.which.value}`);
    this.second.format = SECOND[this.which.value];
    this.second.show([{ label: this.second.title, curve: of(own, this.which.value) }]);
  }
}

/** @param {string} name */
function remembered(name) {
  return localStorage.getItem(REMEMBERED + name);
}

/** @param {string} name @param {string} value */
function remember(name, value) {
  localStorage.setItem(REMEMBERED + name, value);
}
