// @ts-check
// Settings, MusubiTuner: where the home is, which engine runs, and whether the backend is there. Nothing is installed or switched from the page:
// the command that does it is shown, to be typed on a terminal.
import { app } from "../../../scripts/app.js";
import { copied } from "../trainings/actions.js";
import { button, element } from "../trainings/element.js";
import { ask } from "../trainings/server.js";
import { loadWords, say } from "../trainings/words.js";

/** @param {string} command */
function commandLine(command) {
  const copy = button(say("copy"), async () => {
    await copied(command);
    copy.replaceChildren(say("copied"));
  });
  return element("div", { class: "mt-tools" }, element("code", { style: { userSelect: "all", overflowWrap: "anywhere" } }, command), copy);
}

function report() {
  const panel = element("div", { class: "musubi-backend mt-setting" });
  const tell = async () => {
    const { home, engine, installed, command, other_engine: other } = await ask("backend");
    panel.replaceChildren(element("div", {}, say("backend.home", { home })), element("div", {}, say("backend.engine", { engine })));
    if (installed) panel.append(element("div", {}, say("backend.there")));
    else panel.append(element("div", {}, say("backend.missing")), commandLine(command));
    if (other) panel.append(element("div", { class: "mt-faint" }, say("backend.other_engine")), commandLine(other));
  };
  tell().catch((error) => panel.replaceChildren(error.message));
  return panel;
}

app.registerExtension({
  name: "MusubiTuner.Backend",
  init: loadWords,
  settings: [
    {
      id: /** @type {any} */ ("MusubiTuner.Backend"),
      category: ["MusubiTuner", "Backend", "Backend"],
      name: "Backend",
      tooltip: "The environment that does the heavy work. The page installs nothing.",
      type: report,
      defaultValue: null,
    },
  ],
});
