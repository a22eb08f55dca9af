// The words of our own parts of the page in ComfyUI's language: `locales/<language>/main.json`, under "musubiTuner". English is the key.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

let words = {};

/** Fetches the words of the page's language; until then, and where there are none, they are English. */
export async function loadWords() {
  const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  const answer = await api.fetchApi("/i18n");
  const all = answer.ok ? await answer.json() : {};
  words = all[language]?.musubiTuner ?? {};
}

/** A sentence in the page's language, with what its {names} stand for. */
export function say(sentence, values = {}) {
  return (words[sentence] ?? sentence).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

const loading = loadWords().catch((error) => console.warn(`MusubiTuner: no translations: ${error.message}`));

/** When the words are there. */
export function wordsAreThere() {
  return loading;
}
