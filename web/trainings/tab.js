// @ts-check
// The sidebar tab "Trainings": the list, or one training, in the sidebar or in a window as large as the page.
import { app } from "../../../scripts/app.js";
import { DetailView } from "./detail.js";
import { addStylesheet, button, element, keepKeys, setText } from "./element.js";
import { List } from "./list.js";
import { jobs } from "./server.js";
import { openStorage } from "./storage.js";
import { loadWords, say } from "./words.js";

export const TAB = "musubi-tuner-trainings";

/** What the tab shows; it is kept while the tab is closed, so that it opens where it was left. */
class Trainings {
  constructor() {
    this.list = new List((id) => this.open(id));
    /** @type {DetailView | null} */
    this.detail = null;
    this.inside = element("div", { class: "mt-inside" }, this.list.whole);
    this.heading = element("h1", { class: "mt-heading" }, say("tab"));
    this._drawing = 0; // a frame that was asked for: several changes are drawn at once, and none while the page is hidden
    this.wide = button(say("large"), () => this._enlarge(), { icon: "pi-window-maximize", only: true });
    this.bar = element("div", { class: "mt-bar-top" }, this.heading, button(say("refresh"), () => this._refresh(), { icon: "pi-refresh", only: true }), button(say("storage.open"), openStorage, { icon: "pi-trash", only: true }), this.wide);
    this.whole = element("div", { class: "mt-trainings" }, this.bar, this.inside);
    keepKeys(this.whole);
    this.whole.addEventListener("wheel", (event) => event.stopPropagation(), { passive: true });
    jobs.watch((changed) => this._changed(changed));
    this.list.render();
  }

  /** @param {string | null} id of a job; null: the list */
  open(id) {
    const left = this.detail?.id;
    this.detail?.end();
    this.detail = null;
    if (id === null) {
      this.inside.replaceChildren(this.list.whole);
      this.list.render();
      if (left) /** @type {HTMLElement | null} */ (this.list.whole.querySelector(`[data-id="${CSS.escape(left)}"]`))?.focus();
      return;
    }
    const detail = new DetailView(id, (other) => this.open(other));
    this.detail = detail;
    this.inside.replaceChildren(detail.whole);
    detail.update.ask();
    detail.name.focus();
  }

  /** @param {Set<string> | null} changed */
  _changed(changed) {
    if (this.detail && (!changed || changed.has(this.detail.id)) && this.whole.isConnected) this.detail.update.ask();
    if (this._drawing) return;
    this._drawing = requestAnimationFrame(() => {
      this._drawing = 0;
      if (!this.detail && this.whole.isConnected) this.list.render();
    });
  }

  _refresh() {
    jobs.load();
    this.detail?.update.ask();
  }

  /** Shows all of it in a window as large as the page, and back. */
  _enlarge() {
    const home = this.whole.parentElement;
    if (!home || home.tagName === "DIALOG") {
      /** @type {HTMLDialogElement} */ (home)?.close();
      return;
    }
    const gone = element("div", { class: "mt-message" }, element("p", { class: "mt-faint" }, say("large.shown")));
    const dialog = element("dialog", { class: "mt-large", "aria-label": say("tab") });
    dialog.addEventListener("close", () => {
      (gone.isConnected ? gone : null)?.replaceWith(this.whole);
      if (this.whole.parentElement === dialog) this.whole.remove();
      dialog.remove();
      this._nameWide("large");
      this.wide.focus(); // it was moved, which loses what was focused
    });
    this.whole.replaceWith(gone);
    dialog.append(this.whole);
    document.body.append(dialog);
    dialog.showModal();
    this._nameWide("large.close");
  }

  /** What the button for the large window does now. @param {"large" | "large.close"} does */
  _nameWide(does) {
    this.wide.setAttribute("aria-label", say(does));
    this.wide.title = say(does);
    /** @type {Element} */ (this.wide.firstElementChild).className = `pi ${does === "large" ? "pi-window-maximize" : "pi-window-minimize"}`;
  }
}

/** @type {Trainings | undefined} */
let shown;

/** Shows a job in the tab. @param {string | null} id */
export async function openTraining(id) {
  const sidebar = /** @type {any} */ (app.extensionManager);
  if (sidebar.sidebarTab?.activeSidebarTabId !== TAB) await sidebar.command.execute(`Workspace.ToggleSidebarTab.${TAB}`);
  await loadWords();
  shown ??= new Trainings();
  shown.open(id);
}

app.registerExtension({
  name: "MusubiTuner.Trainings",
  async setup() {
    addStylesheet(new URL("./style.css", import.meta.url).href);
    addStylesheet(new URL("../vendor/uplot.css", import.meta.url).href);
    await loadWords();
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: "pi pi-chart-line",
      title: say("tab"),
      tooltip: say("tab.hint"),
      type: "custom",
      render: (place) => {
        shown ??= new Trainings();
        place.replaceChildren(shown.whole);
        place.style.height = "100%";
        jobs.load();
        setText(shown.heading, say("tab"));
      },
    });
  },
});
