// Settings, MusubiTuner: the folders that workflows may use besides ComfyUI's own. They are kept by the server, not in the page's settings.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { loadWords, say } from "./trainings/words.js";

const ROUTE = "/musubi_tuner/allowed_folders";

function editor() {
  const panel = document.createElement("div");
  const box = document.createElement("textarea");
  const button = document.createElement("button");
  const said = document.createElement("span");
  box.className = "musubi-allowed-folders";
  box.rows = 4;
  box.style.cssText = "width: 100%; min-width: 20rem; font: inherit; color: inherit; background: var(--comfy-input-bg, #222);";
  box.placeholder = "/data/clips";
  loadWords().then(() => {
    box.setAttribute("aria-label", say("folders.label"));
    button.textContent = say("save");
  });
  said.style.marginLeft = "8px";
  panel.append(box, button, said);

  const take = async (answer) => {
    const { folders, error } = await answer.json();
    if (folders) box.value = folders.join("\n");
    return error;
  };
  const tell = (words) => (said.textContent = words);
  api.fetchApi(ROUTE, { cache: "no-store" }).then(take).then((error) => error && tell(error), (error) => tell(error.message));
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const body = JSON.stringify({ folders: box.value.split("\n") });
      const answer = await api.fetchApi(ROUTE, { method: "POST", headers: { "Content-Type": "application/json" }, body });
      tell((await take(answer)) ?? say("saved"));
    } catch (error) {
      tell(say("saved.not", { why: error.message }));
    } finally {
      button.disabled = false;
    }
  });
  return panel;
}

app.registerExtension({
  name: "MusubiTuner.AllowedFolders",
  settings: [
    {
      id: "MusubiTuner.AllowedFolders",
      category: ["MusubiTuner", "Folders", "AllowedFolders"],
      name: "Folders that workflows may use",
      tooltip: "One folder per line. Paths in the nodes may lie in ComfyUI's own folders and in these.",
      type: editor,
      defaultValue: null,
    },
  ],
});
