// @ts-check
// Settings, MusubiTuner: the folders that workflows may use. Those of the pack are kept by the server, in config.json; ComfyUI's own are shown.
import { app } from "../../../scripts/app.js";
import { button, element, keepKeys } from "../trainings/element.js";
import { ask } from "../trainings/server.js";
import { loadWords, say } from "../trainings/words.js";

const ROUTE = "allowed_folders";

function editor() {
  const box = element("textarea", { class: "musubi-allowed-folders mt-field", rows: 4, placeholder: "/data/clips", "aria-label": say("folders.label") });
  const said = element("span", { role: "status" });
  const own = element("ul", { class: "mt-faint" });
  const save = button(say("save"), async () => {
    save.disabled = true;
    try {
      const { folders } = await ask(ROUTE, { folders: box.value.split("\n") });
      box.value = folders.join("\n");
      said.textContent = say("saved");
    } catch (error) {
      said.textContent = say("saved.not", { why: /** @type {Error} */ (error).message });
    } finally {
      save.disabled = false;
    }
  });
  const read = async () => {
    const { folders, own: ofComfyUI } = await ask(ROUTE);
    box.value = folders.join("\n");
    own.replaceChildren(...ofComfyUI.map((/** @type {string} */ folder) => element("li", {}, folder)));
  };
  read().catch((error) => (said.textContent = error.message));
  const whole = element("div", { class: "mt-setting" }, box, element("div", { class: "mt-tools" }, save, said), element("details", {}, element("summary", {}, say("folders.own")), own));
  keepKeys(whole);
  return whole;
}

app.registerExtension({
  name: "MusubiTuner.AllowedFolders",
  init: loadWords,
  settings: [
    {
      id: /** @type {any} */ ("MusubiTuner.AllowedFolders"),
      category: ["MusubiTuner", "Folders", "AllowedFolders"],
      name: "Folders that workflows may use",
      tooltip: "One folder per line. Paths in the nodes may lie in ComfyUI's own folders and in these.",
      type: editor,
      defaultValue: null,
    },
  ],
});
