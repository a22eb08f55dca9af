// @ts-check
// Widgets in messages, called as the nodes show them; the nodes go by the same names and rules (nodes/widget_names.py). A name of one word
// may be any word: it is a widget's where it is marked, as in a translation that leaves it in English.

const QUOTES = /** @type {Record<string, [string, string]>} */ ({ ja: ["「", "」"], zh: ["“", "”"] });
const MARK = "\ue000"; // of no language
const OF_A_FILE = /\.toml\b|\[(?:datasets|general)\]|datasets\[/; // a line about a dataset file names keys of it
const FLAG = /--\w+ $/;
const INSIDE = ["()", "（）"];
const CJK = "[\u3040-\u9fff]";
const BEFORE = "(?<![\\w./\\\\\\[\\]{\"'=-])";
const BEHIND = "(?!\\w|[./\\\\-]\\w|[\"'(}]| ?=)";

/** A word that may be a widget's name, said so; `Names.called` takes the mark away again. @param {string} word */
export const marked = (word) => MARK + word + MARK;

export class Names {
  /** @param {Record<string, string>} shown what inputs are called, by what workflows call them @param {string} language */
  constructor(shown, language) {
    this.shown = shown;
    this.quotes = QUOTES[language];
    const [words, several] = [false, true].map((parts) => Object.keys(shown).filter((name) => name.includes("_") === parts).join("|"));
    this.word = new RegExp(`${BEFORE}(?:${words})${BEHIND}`, "g");
    this.widget = new RegExp(`(?:(?<=${CJK}) )?(?:${BEFORE}(${several})${BEHIND}|${MARK}(\\w+)${MARK})(?: (?=${CJK}))?`, "g");
  }

  /** A translation whose words that are left in English are marked, where they can be names of widgets. @param {string} translation @param {string} english */
  withMarks(translation, english) {
    return translation.replace(this.word, (word, /** @type {number} */ at) => (FLAG.test(translation.slice(0, at)) || !english.includes(word) ? word : marked(word)));
  }

  /** A message with its widgets as they are shown, the first time with what workflows call them. @param {string} text */
  called(text) {
    const told = new Set();
    const named = (/** @type {string} */ whole, /** @type {string | undefined} */ several, /** @type {string | undefined} */ word, /** @type {number} */ at, /** @type {string} */ line) => {
      const widget = several ?? word ?? "";
      if (!(widget in this.shown)) return whole.replaceAll(MARK, "");
      const name = this.quotes.join(this.shown[widget]);
      if (told.has(widget)) return name;
      told.add(widget);
      return INSIDE.includes((line[at - 1] ?? "") + (line[at + whole.length] ?? "")) ? `${name} ${widget}` : `${name}（${widget}）`;
    };
    return text.split("\n").map((line) => (OF_A_FILE.test(line) ? line.replaceAll(MARK, "") : line.replace(this.widget, named))).join("\n");
  }
}
