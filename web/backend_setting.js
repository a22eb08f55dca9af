// Settings, MusubiTuner: where the home is, which engine runs, and whether the backend is there. Nothing is installed from the page: what is
// missing is said with the command that installs it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { loadWords, say } from "./trainings/words.js";

function line(text) {
  const made = document.createElement("div");
  made.textContent = text;
  return made;
}

function commandLine(command) {
  const row = document.createElement("div");
  const code = document.createElement("code");
  const button = document.createElement("button");
  code.textContent = command;
  code.style.cssText = "user-select: all; overflow-wrap: anywhere;";
  button.textContent = say("copy");
  button.style.marginLeft = "8px";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(command);
    button.textContent = say("copied");
  });
  row.append(code, button);
  return row;
}

function report() {
  const panel = document.createElement("div");
  panel.className = "musubi-backend";
  const tell = async () => {
    await loadWords();
    const answer = await api.fetchApi("/musubi_tuner/backend", { cache: "no-store" });
    const { home, engine, installed, command, error } = await answer.json();
    if (error) return panel.replaceChildren(line(error));
    panel.replaceChildren(line(say("backend.home", { home })), line(say("backend.engine", { engine })));
    if (installed) panel.append(line(say("backend.there")));
    else panel.append(line(say("backend.missing")), commandLine(command));
  };
  tell().catch((error) => panel.replaceChildren(line(error.message)));
  return panel;
}

app.registerExtension({
  name: "MusubiTuner.Backend",
  settings: [
    {
      id: "MusubiTuner.Backend",
      category: ["MusubiTuner", "Backend", "Backend"],
      name: "Backend",
      tooltip: "The environment that does the heavy work. The page installs nothing.",
      type: report,
      defaultValue: null,
    },
  ],
});
