// @ts-check
// The end of a job's log, followed while it goes on, and lines found in all of it.
import { element, setText } from "./element.js";
import { log } from "./server.js";
import { say } from "./words.js";

const KEPT = 200_000; // characters
const WAIT = 300; // milliseconds after the last key

export class Log {
  /** @param {string} id */
  constructor(id) {
    this.id = id;
    this.next = 0;
    this.text = "";
    this.bar = "";
    this.search = element("input", { type: "search", class: "mt-search", placeholder: say("log.find"), "aria-label": say("log.find"), oninput: () => this._later() });
    this.lines = element("pre", { class: "mt-log", tabindex: "0", role: "log", "aria-live": "off", "aria-label": say("tab.log") });
    this.said = element("div", { class: "mt-faint", role: "status" });
    this.whole = element("div", { class: "mt-logs" }, this.search, this.said, this.lines);
    this._timer = 0;
    this._busy = false;
  }

  /** @param {import("./server.js").Written} end */
  begin(end) {
    if (!this.next) this._take(end);
  }

  /** Reads what was written since. */
  async follow() {
    if (this._busy || this.search.value.trim()) return;
    this._busy = true;
    try {
      this._take(await log(this.id, { after: this.next }));
    } finally {
      this._busy = false;
    }
  }

  /** @param {import("./server.js").Written} news */
  _take({ text, bar, next }) {
    if (next < this.next) this.text = ""; // the log began anew
    this.next = next;
    this.text = (this.text + text).slice(-KEPT);
    this.bar = bar;
    this._show();
  }

  _later() {
    clearTimeout(this._timer);
    this._timer = window.setTimeout(() => this._find(), WAIT);
  }

  async _find() {
    const wanted = this.search.value.trim();
    if (!wanted) {
      this.said.textContent = "";
      this._show();
      return;
    }
    const { text } = await log(this.id, { find: wanted });
    const found = text ? text.replace(/\n$/, "").split("\n") : [];
    this.said.textContent = say("log.found", { found: found.length });
    this.lines.replaceChildren(...found.flatMap((one) => [...marked(one, wanted), "\n"]));
  }

  _show() {
    const text = this.text + this.bar;
    const { scrollTop, scrollHeight, clientHeight } = this.lines;
    const atEnd = scrollHeight - scrollTop - clientHeight < 40;
    setText(this.lines, text || say("log.empty"));
    if (atEnd) this.lines.scrollTop = this.lines.scrollHeight;
  }

  /** Once it can be seen: its end. */
  toEnd() {
    this.lines.scrollTop = this.lines.scrollHeight;
  }
}

/** A line with what was looked for marked. @param {string} line @param {string} wanted @returns {(string | Node)[]} */
function marked(line, wanted) {
  const parts = [];
  const small = line.toLowerCase();
  let from = 0;
  for (let at = small.indexOf(wanted.toLowerCase()); at >= 0 && wanted; at = small.indexOf(wanted.toLowerCase(), from)) {
    parts.push(line.slice(from, at), element("mark", {}, line.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  return [...parts, line.slice(from)];
}
