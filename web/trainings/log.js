// @ts-check
// The end of a job's log, followed while it goes on, and lines found in all of it.
import { element } from "./element.js";
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
    this.search = element("input", { type: "search", class: "mt-search", placeholder: say("log.find"), "aria-label": say("log.find"), oninput: () => this._later() });
    this.lines = element("pre", { class: "mt-log", tabindex: "0", role: "log", "aria-live": "off", "aria-label": say("tab.log") });
    this.said = element("div", { class: "mt-faint", role: "status" });
    this.whole = element("div", { class: "mt-logs" }, this.search, this.said, this.lines);
    this._timer = 0;
    this._busy = false;
  }

  /** @param {{ text: string, next: number }} end */
  begin({ text, next }) {
    if (this.next) return;
    this.next = next;
    this.text = text;
    this._show(text);
  }

  /** Reads what was written since. */
  async follow() {
    if (this._busy || this.search.value.trim()) return;
    this._busy = true;
    try {
      const { text, next } = await log(this.id, { after: this.next });
      if (next < this.next) this.text = "";
      this.next = next;
      if (text) {
        this.text = (this.text + text).slice(-KEPT);
        this._show(this.text);
      }
    } finally {
      this._busy = false;
    }
  }

  _later() {
    clearTimeout(this._timer);
    this._timer = window.setTimeout(() => this._find(), WAIT);
  }

  async _find() {
    const wanted = this.search.value.trim();
    if (!wanted) {
      this.said.textContent = "";
      this._show(this.text);
      return;
    }
    const { text } = await log(this.id, { find: wanted });
    const found = text ? text.replace(/\n$/, "").split("\n") : [];
    this.said.textContent = say("log.found", { found: found.length });
    this.lines.replaceChildren(...found.flatMap((one) => [...marked(one, wanted), "\n"]));
  }

  /** @param {string} text */
  _show(text) {
    const { scrollTop, scrollHeight, clientHeight } = this.lines;
    const atEnd = scrollHeight - scrollTop - clientHeight < 40;
    this.lines.textContent = text || say("log.empty");
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
