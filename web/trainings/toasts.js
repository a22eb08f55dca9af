// @ts-check
// A toast when a job in the background has ended: once in this browser, whatever tabs are open, also for what ended while none was. What
// runs here needs none, as ComfyUI tells of it.
import { app } from "../../../scripts/app.js";
import { title } from "./row.js";
import { jobs, standing } from "./server.js";
import { loadWords, opening, say, translated } from "./words.js";

/** @typedef {import("./server.js").Job} Job */
/** @typedef {{ since: number, told: Record<string, number> }} Told  `since`: what ended before is known; `told`: when jobs ended that were told of */

const KEPT = "MusubiTuner.Trainings.told"; // in the browser, shared by its tabs
const MOST_KEPT = 200;
const MOST_AT_ONCE = 3;
const SHOWN = 12_000; // milliseconds; a failure stays until it is closed
const SEVERITY = /** @type {Record<string, "success" | "info" | "error">} */ ({ finished: "success", stopped: "info", failed: "error", lost: "error" });

/** @returns {Told | null} */
function kept() {
  try {
    return JSON.parse(localStorage.getItem(KEPT) ?? "null");
  } catch {
    return null; // written by something else
  }
}

/** Jobs that are to be told of now, which from then on count as told. A browser that comes here first knows what has ended. @param {Job[]} all @returns {Job[]} */
function news(all) {
  const before = kept();
  const { since, told } = before ?? { since: Math.max(0, ...all.map((job) => job.ended ?? 0)), told: {} };
  const found = all.filter((job) => job.background && SEVERITY[standing(job)] && (job.ended ?? 0) > since && !(job.id in told));
  if (before && !found.length) return found;
  const newest = [...Object.entries(told), ...found.map((job) => /** @type {[string, number]} */ ([job.id, job.ended ?? 0]))].sort((a, b) => b[1] - a[1]);
  const forgotten = newest[MOST_KEPT]?.[1];
  localStorage.setItem(KEPT, JSON.stringify({ since: forgotten ?? since, told: Object.fromEntries(newest.slice(0, MOST_KEPT)) }));
  return found;
}

/** @param {Job[]} ended */
function tell(ended) {
  const toast = app.extensionManager.toast;
  if (ended.length > MOST_AT_ONCE) {
    const failed = ended.filter((job) => SEVERITY[standing(job)] === "error").length;
    toast.add({ severity: failed ? "error" : "info", summary: say("toast.many", { jobs: ended.length }), detail: say("toast.failed", { failed }) });
    return;
  }
  for (const job of ended) {
    const severity = SEVERITY[standing(job)];
    const detail = translated(opening(job.error || job.text));
    toast.add({ severity, summary: `${title(job)}: ${say(`state.${standing(job)}`)}`, detail, life: severity === "error" ? undefined : SHOWN });
  }
}

/** Tells of what is new, in one tab that can be seen; without locks (ComfyUI on another machine, without https) two windows may both. */
async function look() {
  if (document.visibilityState !== "visible" || !jobs.loaded || jobs.problem) return;
  const once = async () => tell(news([...jobs.byId.values()]));
  await (navigator.locks ? navigator.locks.request(KEPT, once) : once());
}

app.registerExtension({
  name: "MusubiTuner.Toasts",
  init() {
    jobs.load(); // while ComfyUI asks for its nodes; once it draws its page, an answer waits for seconds, and so would the tab
  },
  async setup() {
    await loadWords();
    jobs.watch(() => look());
    document.addEventListener("visibilitychange", () => look());
    jobs.load();
  },
});
