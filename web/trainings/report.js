// @ts-check
// What a node's run said: its line, and of a long text all of it, to scroll, to copy, and to read in a large window.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { copied } from "./actions.js";
import { shown } from "./dialog.js";
import { addStylesheet, button, element } from "./element.js";
import { pathTo, placed, tellLine } from "./places.js";
import { makeRoom } from "./room.js";
import { loadWords, say } from "./words.js";

const [LEAST, MOST] = [90, 220]; // of its height, by how long it is
const WIDTH = 340; // of a node with a report, where it was narrower: what the templates have
const LINE = 18;
const LETTERS = 42; // of a line

/** @param {string} text */
function large(text) {
  const close = button(say("close"), () => dialog.close(), { icon: "pi-times", only: true });
  const inside = element("div", { class: "mt-report" }, element("div", { class: "mt-tools" }, button(say("copy"), () => copied(text), { icon: "pi-copy" }), close), element("pre", { tabindex: "0", role: "document", "aria-label": say("report") }, text));
  const dialog = element("dialog", { class: "mt-large", "aria-label": say("report") }, inside);
  shown(dialog);
}

/** How high a text is shown. @param {string} text */
function heightOf(text) {
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / LETTERS)), 0);
  return Math.min(MOST, Math.max(LEAST, 54 + LINE * lines));
}

/** Shows a text on a node, below a line that says what it is. @param {any} node @param {{ text: string, line?: string }} said */
export async function report(node, { text, line }) {
  await loadWords();
  if (!node.musubiReport) {
    const words = element("pre", { tabindex: "0", role: "document", "aria-label": say("report") });
    const heading = element("b");
    const whole = element("div", { class: "mt-report" }, element("div", { class: "mt-tools" }, heading, button(say("copy"), () => copied(words.textContent ?? ""), { icon: "pi-copy", only: true }), button(say("report.large"), () => large(words.textContent ?? ""), { icon: "pi-window-maximize", only: true })), words);
    whole.addEventListener("wheel", (event) => event.stopPropagation(), { passive: true });
    const widget = node.addDOMWidget("musubi_report", "musubi_report", whole, { serialize: false, hideOnZoom: false, getMinHeight: () => heightOf(words.textContent ?? "") });
    widget.serialize = false;
    node.musubiReport = { words, heading, whole, widget };
    if (node.size[0] < WIDTH) node.setSize([WIDTH, node.size[1]]);
  }
  node.musubiReport.words.textContent = text;
  node.musubiReport.heading.textContent = line ?? say("report");
  node.musubiReport.whole.style.minHeight = `${heightOf(text) - 10}px`; // Nodes 2.0 shares a node's height out by what its parts say of themselves
  makeRoom(node);
}

/** What an earlier Run said is not what this one came to. @param {any} node */
function forget(node) {
  if (!node?.musubiReport) return;
  node.removeWidget(node.musubiReport.widget);
  delete node.musubiReport;
}

const ours = (/** @type {any} */ node) => String(node?.comfyClass ?? node?.type).startsWith("MusubiTuner_");

/** @param {any} node @param {any} output what its run told the page */
function show(node, output) {
  const said = output?.musubi_report?.[0];
  if (!said) return;
  tellLine(node, said.line);
  if (said.text) report(node, { text: said.text });
  else forget(node);
}

app.registerExtension(/** @type {any} */ ({
  name: "MusubiTuner.Report",
  setup() {
    addStylesheet(new URL("./style.css", import.meta.url).href);
    for (const end of ["execution_error", "execution_interrupted"]) {
      api.addEventListener(/** @type {any} */ (end), (/** @type {any} */ { detail }) => forget(pathTo(detail.node_id).pop()));
    }
  },
  nodeCreated(/** @type {any} */ node) {
    if (!ours(node)) return;
    const executed = node.onExecuted;
    node.onExecuted = function (/** @type {any} */ output) {
      executed?.apply(this, arguments);
      show(this, output);
    };
  },
  /** Of a graph that is seen again: another tab was looked at, or it was opened from the queue. @param {Record<string, any>} outputs */
  onNodeOutputsUpdated(outputs) {
    for (const [name, output] of Object.entries(outputs)) {
      const node = placed(name);
      if (ours(node)) show(node, output);
    }
  },
}));
