// @ts-check
// What our parts of the page say, in the language that ComfyUI is set to: web/texts/<language>.json. What a language lacks is said in English.
import { app } from "../../../scripts/app.js";
import { marked, Names } from "./names.js";

const HOLE = /\{(\w+)(?::([^|{}]+)\|([^|{}]+))?\}/g; // a value; a number with what it counts, one and several: {clips:clip|clips}
const HOLE_OR_FLAG = new RegExp(`${HOLE.source}|(?<![\\w-])(--[a-z]\\w*) ?`, "g"); // a flag stands for whatever a node calls it
const NUMBER = "\\d[\\d.,]*";
const FLAG = "(?:-{0,2}\\w[\\w-]*(?: and \\w+| Config)? ?)?";

/** @type {Record<string, string>} */
let texts = {};
/** @typedef {{ part: string, pattern: RegExp, names: string[], translation: string }} Sentence part: what it surely has in it */
/** @type {Sentence[]} what the server says: what is around a sentence first, then what says most */
let ofTheServer = [];
/** @type {Names} of the language's widgets */
let widgets;
/** @type {Map<string, string>} */
const already = new Map();
const MOST_KEPT = 500;
const BETWEEN = ["\n", " · ", " | "]; // what stands between sentences
const WITHIN = [". ", "; ", ": "]; // and between the parts of one that no entry has whole
const STOPS = /** @type {Record<string, Record<string, string>>} */ ({ ja: { ". ": "。", "; ": "。" }, zh: { ". ": "。", "; ": "；", ": ": "：" } }); // the same behind what is said in the language
// an input's; what no sentence around it fits into; a whole path, a number and words, as hardly anything before them is one
const HOLDS = /** @type {Record<string, string>} */ ({ name: "\\w+", path: "(?:\\w:)?[^:]*", parent: "(?:/|\\\\\\\\|\\w:[\\\\/]).*", steps: "\\d[\\d.,]*", left: "\\d[^,]*", kind_words: "[a-z ]+" });
const INSIDE = /^(said|kind)/; // holes of sentences and of words that are said in the language too
const MOST_PARTS = 50; // a text of more is a log
const BEGIN = /^(?:\s|- |… )+/; // of a line in a list
const COUNTED = /^(.+)( \d+\/\d+)$/; // how far something is, behind its name
/** @type {Promise<void> | undefined} */
let loading;

/** Reads the texts; to be awaited once before `say` is used. */
export function loadWords() {
  loading ??= read();
  return loading;
}

/** The first line of a text; of one that announces a list, with what the list begins with. @param {string} text */
export function opening(text) {
  const lines = text.trim().split("\n").map((line) => line.trim());
  const end = lines.findIndex((line) => !/[:：]$/.test(line));
  return lines.slice(0, end < 0 ? lines.length : end + 1).join(" ");
}

/** The language of the page, as far as we have words of it. */
export function language() {
  const chosen = String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en");
  return ["ja", "zh"].find((known) => chosen.startsWith(known)) ?? "en";
}

loadWords(); // asked for while ComfyUI still reads scripts, which waits for this later

async function read() {
  const names = [...new Set(["en", language()])].map((name) => `../texts/${name}.json`);
  const said = language() === "en" ? [] : [`../said/${language()}.json`, `../names/${language()}.json`];
  const files = [...names, ...said].map((name) => fetch(new URL(name, import.meta.url)));
  const tables = await Promise.all(files.map(async (answer) => (await answer).json()));
  texts = Object.assign({}, ...tables.slice(0, names.length));
  const sentences = Object.entries(/** @type {Record<string, string>} */ (said.length ? tables[names.length] : {}));
  if (said.length) widgets = new Names(tables[names.length + 1], language());
  const ahead = (/** @type {string} */ text) => (text.includes("{said") ? 1e6 : 0) + text.replace(HOLE_OR_FLAG, (_whole, _name, one) => one ?? "").length; // one with many holes fits others too
  sentences.sort(([a], [b]) => ahead(b) - ahead(a));
  ofTheServer = sentences.map(([english, translation]) => sentence(english, widgets.withMarks(translation, english)));
}

/**
 * The text of a key; `{name}` in it is replaced, `{clips:clip|clips}` by "1 clip" or "3 clips". A key that no table has is said as it is.
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 */
export function say(key, values = {}) {
  return (texts[key] ?? key).replace(HOLE, (whole, name, one, several) => {
    if (!(name in values)) return whole;
    return one ? `${values[name]} ${String(values[name]) === "1" ? one : several}` : String(values[name]);
  });
}

/** @param {string} english @param {string} translation @returns {Sentence} */
function sentence(english, translation) {
  const holes = [...english.matchAll(HOLE_OR_FLAG)];
  const literal = english.split(new RegExp(HOLE_OR_FLAG.source.replaceAll(/\((?!\?)/g, "(?:"), "g"));
  const escaped = literal.map((part) => part.replace(/[.*+?^$(){}|[\]\\]/g, "\\$&"));
  const hole = (/** @type {RegExpMatchArray} */ [, name, one, several]) => (one ? `(${NUMBER}) (?:${several}|${one})` : `(${name ? (HOLDS[name] ?? ".*") : FLAG})`);
  const pattern = escaped.map((part, place) => (place ? hole(holes[place - 1]) : "") + part).join("");
  const part = literal.reduce((longest, one) => (one.length > longest.length ? one : longest));
  return { part, pattern: new RegExp(`^${pattern}$`), names: holes.map(([, name, , , flag]) => name ?? flag), translation };
}

/** @param {string} translation @param {Record<string, string>} values */
const filled = (translation, values) =>
  translation.replace(HOLE_OR_FLAG, (whole, name, _one, _several, flag) => {
    if (name) return values[name] ?? whole;
    const called = (values[flag] ?? flag).trim();
    return called && whole.endsWith(" ") ? `${called} ` : called;
  });

/**
 * What the server says, in English as its log, in the page's language by web/said/<language>.json, whose keys are the English with holes;
 * what has no entry is taken apart. The nodes go by the same entries and rules (`nodes/translations.py`).
 * @param {string} said
 * @returns {string}
 */
export function translated(said) {
  if (!said || language() === "en") return said;
  const had = already.get(said);
  if (had !== undefined) return had;
  const words = inWords(said);
  const text = words === said ? said : widgets.called(words);
  if (already.size >= MOST_KEPT) already.clear();
  already.set(said, text);
  return text;
}

/** @param {string} said @returns {string} */
function inWords(said) {
  if (!said) return said;
  const between = BETWEEN.find((one) => said.includes(one));
  if (between) return said.split(between).map(inWords).join(between);
  const begin = BEGIN.exec(said);
  if (begin && begin[0].length < said.length) {
    const rest = inWords(said.slice(begin[0].length));
    return begin[0] === " " && rest.startsWith("（") ? rest : begin[0] + rest;
  }
  for (const { part, pattern, names, translation } of ofTheServer) {
    const found = said.includes(part) ? pattern.exec(said) : null;
    if (!found) continue;
    const values = Object.fromEntries(names.map((name, index) => [name, found[index + 1]]));
    const inside = Object.fromEntries(names.filter((name) => INSIDE.test(name)).map((name) => [name, inWords(values[name])]));
    const another = names.some((name) => name.startsWith("kind") && inside[name] === values[name]);
    if ("name" in values) values.name = marked(values.name);
    if (!another) return filled(translation, { ...values, ...inside });
  }
  const counted = COUNTED.exec(said);
  if (counted) return inWords(counted[1]) + counted[2];
  for (const within of WITHIN) {
    const place = said.indexOf(within);
    if (place < 0 || said.split(within).length > MOST_PARTS) continue;
    const [first, rest] = [said.slice(0, place), said.slice(place + within.length)];
    const [before, behind] = [first, rest].map(inWords);
    if (before === first && behind === rest) continue;
    return before + (first && before === first ? within : (STOPS[language()][within] ?? within)) + behind;
  }
  return said;
}

/** All keys that begin so. @param {string} beginning */
export const keys = (beginning) => Object.keys(texts).filter((key) => key.startsWith(beginning));

/** Whether there is a text of this key. @param {string} key */
export const known = (key) => key in texts;

/** Seconds for people: "45 s", "12 min", "3 h 5 min", "2 d 4 h". @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  if (seconds < 90) return say("time.s", { s: Math.max(0, Math.round(seconds)) });
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return say("time.min", { min: minutes });
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return say("time.h", { h: hours, min: minutes % 60 });
  return say("time.d", { d: Math.floor(hours / 24), h: hours % 24 });
}

/** A speed: "1.24 s/it", or "3.2 it/s" where steps are shorter than a second. @param {number | null | undefined} seconds of a step */
export function pace(seconds) {
  if (!seconds || !Number.isFinite(seconds)) return "";
  return seconds >= 1 ? `${seconds.toPrecision(3)} s/it` : `${(1 / seconds).toPrecision(3)} it/s`;
}

/** Bytes: "412 MB", "1.8 GB". @param {number | null | undefined} bytes */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "";
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : bytes >= 1e6 ? `${Math.round(bytes / 1e6)} MB` : `${Math.ceil(bytes / 1e3)} kB`;
}

/** A loss or a rate with the digits that tell something. @param {number | null | undefined} value */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const magnitude = Math.abs(value);
  return magnitude !== 0 && (magnitude < 1e-3 || magnitude >= 1e5) ? value.toExponential(2) : value.toPrecision(magnitude >= 100 ? 4 : 3);
}

const THOUSANDS = new Intl.NumberFormat("en-US"); // made once: it is slow to make

/** A whole number with separators. @param {number | null | undefined} value */
export const count = (value) => (value === null || value === undefined ? "–" : THOUSANDS.format(value).replaceAll(",", "\u202f")); // narrow, and no line ends there

/** When something was, as people of the page's language write it, in English those of the browser's; with the day where it was not today. @param {number | null | undefined} time seconds */
export function moment(time) {
  if (!time) return "";
  const date = new Date(time * 1000);
  const today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString(language() === "en" ? undefined : language(), today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
}
