// Settings, MusubiTuner: where the home is, which engine runs, and whether the backend is there. Nothing is installed from the page: what is
// missing is said with the command that installs it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { say, wordsAreThere } from "./words.js";

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
  button.textContent = say("Copy");
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
    await wordsAreThere();
    const answer = await api.fetchApi("/musubi_tuner/backend", { cache: "no-store" });
    const { home, engine, installed, command, error } = await answer.json();
    if (error) return panel.replaceChildren(line(error));
    panel.replaceChildren(line(say("home: {home}", { home })), line(say("engine: {engine}", { engine })));
    if (installed) panel.append(line(say("The backend is installed.")));
    else panel.append(line(say("The backend is not installed yet. Run this on a terminal, then restart ComfyUI:")), commandLine(command));
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
