// @ts-check
// Dataset Viewer: the captions of the page that was looked at, to read and to edit.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { element, keepKeys } from "./trainings/element.js";
import { loadWords, say, translated } from "./trainings/words.js";

const NODE = "MusubiTuner_DatasetViewer";
const PROPERTY = "musubi_dataset_view"; // the id of the page, kept in the workflow
const LEAST = 240; // of its height: Nodes 2.0 would make the node as high as all captions
const WIDTH = 420; // of a new node
const THUMBNAIL = { width: 112, height: 70 };

const STYLE = `
.musubi-viewer { display: flex; flex-direction: column; gap: 6px; overflow-y: auto; height: 100%; min-height: ${LEAST}px; contain: size; font: 12px sans-serif; color: var(--input-text, #ddd); }
.musubi-viewer .musubi-item { display: flex; gap: 8px; align-items: stretch; }
.musubi-viewer .musubi-thumbnail { flex: none; width: ${THUMBNAIL.width}px; height: ${THUMBNAIL.height}px; background-color: #111; background-repeat: no-repeat; border-radius: 4px; }
.musubi-viewer .musubi-text { flex: 1; min-width: 0; display: flex; flex-direction: column; gap: 2px; position: relative; }
.musubi-viewer .musubi-head { display: flex; gap: 6px; align-items: baseline; flex-wrap: wrap; min-height: 20px; }
.musubi-viewer .musubi-save { position: absolute; top: 0; right: 0; height: 20px; padding: 0 8px; }
.musubi-viewer .musubi-edited .musubi-name { max-width: calc(100% - 100px); }
.musubi-viewer .musubi-edited .musubi-facts:not(.musubi-bad) { margin-right: 70px; }
.musubi-viewer .musubi-name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.musubi-viewer .musubi-facts { color: var(--descrip-text, #999); flex: 1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.musubi-viewer textarea { flex: 1; min-height: 42px; resize: vertical; font: inherit; color: inherit; background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #444); border-radius: 4px; padding: 3px 5px; }
.musubi-viewer .musubi-bad { color: #ff6b5e; flex: 0 0 100%; white-space: normal; max-height: 5em; overflow-y: auto; }
`;

/**
 * A page of a dataset, as the route gives it, and when it was loaded.
 * @typedef {{ number: number, name: string, facts: string, caption: string, problem?: string, locked?: string, box: [number, number, number, number] }} Item
 * @typedef {{ id: string, items: Item[], sheet: [number, number], loaded: number }} View
 */

/** What somebody wrote and has not saved, and the caption that was there, by view and item: a node that runs again or is made anew shows it again.
 * @type {Map<string, { text: string, before: string }>} */
const unsaved = new Map();

window.addEventListener("beforeunload", (event) => {
  if (unsaved.size) event.preventDefault(); // the browser asks whether the page is to be left
});

/** An item by its name, of several with this name by which it is: its number changes as files come and go. @param {View} view @param {Item} item */
function keyOf(view, item) {
  const before = view.items.filter((one) => one.name === item.name && one.number < item.number);
  return `${view.id} ${before.length} ${item.name}`;
}

function addStyle() {
  if (document.getElementById("musubi-viewer-style")) return;
  document.head.append(element("style", { id: "musubi-viewer-style" }, STYLE));
}

/** @param {View} view @param {Item} item @param {string} caption @returns {Promise<any>} */
async function save(view, item, caption) {
  const answer = await api.fetchApi("/musubi_tuner/caption", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ view: view.id, number: item.number, before: item.caption, caption }),
  });
  return { status: answer.status, ...(await answer.json()) };
}

/** @param {View} view @param {Item} item */
function thumbnail(view, item) {
  const image = element("div", { class: "musubi-thumbnail" });
  const [left, top, width, height] = item.box;
  const scale = Math.min(THUMBNAIL.width / width, THUMBNAIL.height / height);
  const url = api.apiURL(`/view?type=temp&subfolder=musubi_tuner&filename=dataset_${view.id}.png&rand=${view.loaded}`);
  image.style.backgroundImage = `url("${url}")`;
  image.style.backgroundSize = `${view.sheet[0] * scale}px ${view.sheet[1] * scale}px`;
  image.style.backgroundPosition = `${-left * scale}px ${-top * scale}px`;
  return image;
}

/** @param {View} view @param {Item} item */
function row(view, item) {
  const key = keyOf(view, item);
  const name = element("span", { class: "musubi-name", title: item.name }, item.name);
  const facts = element("span", { class: "musubi-facts", role: "status" }, item.facts);
  const box = element("textarea", { "aria-label": say("captions.of", { name: item.name }), "data-key": key, disabled: Boolean(item.locked) });
  const button = element("button", { type: "button", class: "musubi-save", title: say("captions.save", { name: item.name }), "aria-keyshortcuts": "Control+Enter" }, say("save"));
  const text = element("div", { class: "musubi-text" }, element("div", { class: "musubi-head" }, element("b", {}, item.number), name, facts), box, button);
  const tell = (/** @type {string} */ words, /** @type {boolean} */ bad) => {
    facts.textContent = facts.title = words;
    facts.classList.toggle("musubi-bad", bad);
  };
  const changed = () => tell(say("captions.changed", { caption: item.caption }), true);
  const note = () => {
    const edited = box.value.trim() !== item.caption;
    button.hidden = !edited;
    text.classList.toggle("musubi-edited", edited);
    if (edited) unsaved.set(key, { text: box.value, before: item.caption });
    else unsaved.delete(key);
  };
  const store = async () => {
    if (box.value.trim() === item.caption || button.disabled) return;
    const leaves = document.activeElement === button; // it goes as the caption is saved
    button.disabled = true;
    try {
      const answer = await save(view, item, box.value);
      if (answer.status === 200) {
        item.caption = answer.caption;
        tell(say("saved"), false);
      } else if (answer.status === 409) {
        item.caption = answer.current;
        changed();
      } else {
        tell(translated(answer.error), true);
      }
    } catch (error) {
      tell(say("saved.not", { why: /** @type {Error} */ (error).message }), true);
    } finally {
      button.disabled = false;
      note();
      if (leaves) (button.hidden ? box : button).focus();
    }
  };
  const draft = unsaved.get(key);
  box.value = draft?.text ?? item.caption;
  note();
  if (item.problem || item.locked) tell(translated(item.problem || item.locked || ""), true);
  if (draft && draft.before !== item.caption && !button.hidden) changed();
  box.addEventListener("input", note);
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    store();
  });
  button.addEventListener("click", store);
  return element("div", { class: "musubi-item" }, thumbnail(view, item), text);
}

/** @param {any} node @param {HTMLElement} panel @param {unknown} id */
async function show(node, panel, id) {
  if (typeof id !== "string" || !/^[0-9a-f]{16}$/.test(id)) return;
  const answer = await api.fetchApi(`/musubi_tuner/dataset_view/${id}`, { cache: "no-store" });
  const view = await answer.json();
  if (!answer.ok) {
    panel.replaceChildren(element("div", { class: "musubi-facts", role: "alert" }, translated(view.error)));
    return;
  }
  view.loaded = Date.now();
  const text = panel.contains(document.activeElement) ? document.activeElement?.closest(".musubi-text") : null;
  const saving = document.activeElement?.tagName === "BUTTON";
  panel.replaceChildren(...view.items.map((/** @type {Item} */ item) => row(view, item)));
  if (text) goOn(panel, text, saving);
  node.setDirtyCanvas?.(true, true);
}

/** Whoever was in a row that was made anew goes on there. @param {HTMLElement} panel @param {Element} before @param {boolean} saving on its button */
function goOn(panel, before, saving) {
  const old = /** @type {HTMLTextAreaElement} */ (before.querySelector("textarea"));
  const box = [...panel.querySelectorAll("textarea")].find((one) => one.dataset.key === old.dataset.key);
  const button = /** @type {HTMLButtonElement} */ (box?.nextElementSibling);
  if (saving && !button?.hidden) button?.focus({ preventScroll: true });
  else box?.focus({ preventScroll: true });
  box?.setSelectionRange(old.selectionStart, old.selectionEnd);
}

app.registerExtension({
  name: "MusubiTuner.DatasetViewer",
  init: loadWords,
  nodeCreated(/** @type {any} */ node) {
    if (node.comfyClass !== NODE) return;
    addStyle();
    const panel = element("div", { class: "musubi-viewer" });
    panel.append(element("div", { class: "musubi-facts" }, say("captions.none_yet")));
    keepKeys(panel);
    panel.addEventListener("wheel", (event) => event.stopPropagation(), { passive: true });
    const widget = node.addDOMWidget("musubi_captions", "musubi_captions", panel, { serialize: false, hideOnZoom: false, getMinHeight: () => LEAST });
    widget.serialize = false;
    if (node.size[0] < WIDTH) node.setSize([WIDTH, node.size[1]]);
    node.musubiPanel = panel;
    const executed = node.onExecuted;
    node.onExecuted = function (/** @type {any} */ output) {
      executed?.apply(this, arguments);
      const id = output?.musubi_dataset_view?.[0]?.id;
      if (!id) return;
      this.setProperty?.(PROPERTY, id);
      show(this, panel, id);
    };
  },
  loadedGraphNode(/** @type {any} */ node) {
    if (node.comfyClass === NODE && node.musubiPanel) show(node, node.musubiPanel, node.properties?.[PROPERTY]);
  },
});
