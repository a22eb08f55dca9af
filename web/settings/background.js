// @ts-check
// Settings, MusubiTuner: what the queue of the background does, and what is kept. The server keeps them in config.json, so that they hold while
// no page is open.
import { app } from "../../../scripts/app.js";
import { button, element, keepKeys } from "../trainings/element.js";
import { ask } from "../trainings/server.js";
import { openStorage } from "../trainings/storage.js";
import { loadWords, say } from "../trainings/words.js";

/**
 * A field of one setting: it shows what the server has, and saves what is chosen.
 * @param {string} name of the setting in config.json
 * @param {HTMLInputElement | HTMLSelectElement} field
 * @param {(text: string) => unknown} value what a text in the field means
 * @param {...Node} more
 */
function kept(name, field, value, ...more) {
  const said = element("span", { class: "mt-faint", role: "status" });
  const show = (/** @type {any} */ settings) => (field.value = settings[name] ?? "");
  const problem = (/** @type {Error} */ error) => (said.textContent = say("saved.not", { why: error.message }));
  ask("jobs?limit=1").then(({ settings }) => show(settings)).catch((error) => (said.textContent = error.message));
  field.classList.add(`musubi-${name}`, "mt-select");
  field.addEventListener("change", async () => {
    try {
      show((await ask("queue_settings", { [name]: value(field.value) })).settings);
      said.textContent = say("saved");
    } catch (error) {
      problem(/** @type {Error} */ (error));
    }
  });
  const whole = element("div", { class: "mt-setting" }, element("div", { class: "mt-tools" }, field, said, more));
  keepKeys(whole);
  return whole;
}

/** @param {string} label @param {number} most @param {string} [placeholder] */
const numbers = (label, most, placeholder = "") => element("input", { type: "number", min: "0", max: String(most), step: "1", placeholder, "aria-label": label });

const generation = () => kept("generation", element("select", { "aria-label": say("queue.generation") }, ["wait", "warn", "go_ahead"].map((value) => element("option", { value }, say(`queue.generation.${value}`)))), String);
const restarts = () => kept("restarts", numbers(say("queue.restarts"), 10), Number);
const jobs = () => kept("keep_jobs", numbers(say("queue.keep_jobs"), 100_000, say("queue.keep_jobs.all")), (text) => (text.trim() ? Number(text) : null), button(say("storage.open"), openStorage, { icon: "pi-trash" }));

/** @param {string} name @param {string} title @param {string} tooltip @param {() => HTMLElement} type @returns {any} */
const setting = (name, title, tooltip, type) => ({ id: `MusubiTuner.${name}`, category: ["MusubiTuner", "Background", name], name: title, tooltip, type, defaultValue: null });

app.registerExtension({
  name: "MusubiTuner.Background",
  init: loadWords,
  settings: [
    setting("Generation", "While a training runs in the background, a generation", "On the GPU that the training has. Wait: until it is done. Warn: it says so, and runs. Go ahead: it runs.", generation),
    setting("Restarts", "Start again after a crash", "How often a training in the background is started again from its last state, when it was killed or crashed. 0: never.", restarts),
    setting("KeepJobs", "Folders of jobs that are kept", "Older ones of ended jobs are removed when ComfyUI starts. What runs or waits, and jobs of trainings that are there, always stay. Empty: all are kept.", jobs),
  ],
});
