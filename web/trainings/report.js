// @ts-check
// On a node whose result is a long text: all of it, to scroll, to copy, and to read in a large window.
import { app } from "../../../scripts/app.js";
import { copied } from "./actions.js";
import { addStylesheet, button, element } from "./element.js";
import { makeRoom } from "./room.js";
import { loadWords, say } from "./words.js";

const [LEAST, MOST] = [90, 220]; // of its height, by how long it is
const WIDTH = 340; // of a node with a report, where it was narrower: what the templates have
const LINE = 18;
const LETTERS = 42; // of a line

/** @param {string} text */
function large(text) {
  const close = button(say("close"), () => dialog.close(), { icon: "pi-times", only: true });
  const inside = element("div", { class: "mt-report" }, element("div", { class: "mt-tools" }, button(say("copy"), () => copied(text), { icon: "pi-copy" }), close), element("pre", { tabindex: "0" }, text));
  const dialog = element("dialog", { class: "mt-large", "aria-label": say("report") }, inside);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  document.body.append(dialog);
  dialog.showModal();
}

/** How high a text is shown. @param {string} text */
function heightOf(text) {
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / LETTERS)), 0);
  return Math.min(MOST, Math.max(LEAST, 54 + LINE * lines));
}

/** Shows a text on a node, below a line that says what it is. @param {any} node @param {{ text: string, line: string }} said */
export async function report(node, { text, line }) {
  await loadWords();
  if (!node.musubiReport) {
    const words = element("pre", { tabindex: "0", role: "document", "aria-label": say("report") });
    const heading = element("b");
    const whole = element("div", { class: "mt-report" }, element("div", { class: "mt-tools" }, heading, button(say("copy"), () => copied(words.textContent ?? ""), { icon: "pi-copy", only: true }), button(say("report.large"), () => large(words.textContent ?? ""), { icon: "pi-window-maximize", only: true })), words);
    whole.addEventListener("wheel", (event) => event.stopPropagation(), { passive: true });
    const widget = node.addDOMWidget("musubi_report", "musubi_report", whole, { serialize: false, hideOnZoom: false, getMinHeight: () => heightOf(words.textContent ?? "") });
    widget.serialize = false;
    node.musubiReport = { words, heading, whole };
    if (node.size[0] < WIDTH) node.setSize([WIDTH, node.size[1]]);
  }
  node.musubiReport.words.textContent = text;
  node.musubiReport.heading.textContent = line;
  node.musubiReport.whole.style.minHeight = `${heightOf(text) - 10}px`; // Nodes 2.0 shares a node's height out by what its parts say of themselves
  makeRoom(node);
}

app.registerExtension({
  name: "MusubiTuner.Report",
  setup() {
    addStylesheet(new URL("./style.css", import.meta.url).href);
  },
  nodeCreated(/** @type {any} */ node) {
    if (!String(node.comfyClass ?? node.type).startsWith("MusubiTuner_")) return;
    const executed = node.onExecuted;
    node.onExecuted = function (/** @type {any} */ output) {
      executed?.apply(this, arguments);
      const said = output?.musubi_report?.[0];
      if (said) report(this, said);
    };
  },
});
