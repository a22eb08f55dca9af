// @ts-check
// Dataset Viewer: the captions of the page that was looked at, to read and to edit.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { element } from "./trainings/element.js";
import { loadWords, say } from "./trainings/words.js";

const NODE = "MusubiTuner_DatasetViewer";
const PROPERTY = "musubi_dataset_view"; // the id of the page, kept in the workflow
const LEAST = 240; // of its height: Nodes 2.0 would make the node as high as all captions
const WIDTH = 420; // of a new node
const THUMBNAIL = { width: 112, height: 70 };

const STYLE = `
.musubi-viewer { display: flex; flex-direction: column; gap: 6px; overflow-y: auto; height: 100%; min-height: ${LEAST}px; contain: size; font: 12px sans-serif; color: var(--input-text, #ddd); }
.musubi-viewer .musubi-item { display: flex; gap: 8px; align-items: stretch; }
.musubi-viewer .musubi-thumbnail { flex: none; width: ${THUMBNAIL.width}px; height: ${THUMBNAIL.height}px; background-color: #111; background-repeat: no-repeat; border-radius: 4px; }
.musubi-viewer .musubi-text { flex: 1; min-width: 0; display: flex; flex-direction: column; gap: 2px; }
.musubi-viewer .musubi-head { display: flex; gap: 6px; align-items: baseline; }
.musubi-viewer .musubi-name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.musubi-viewer .musubi-facts { color: var(--descrip-text, #999); flex: 1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.musubi-viewer textarea { flex: 1; min-height: 42px; resize: vertical; font: inherit; color: inherit; background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #444); border-radius: 4px; padding: 3px 5px; }
.musubi-viewer .musubi-bad { color: #ff6b5e; }
`;

/**
 * A page of a dataset, as the route gives it, and when it was loaded.
 * @typedef {{ number: number, name: string, facts: string, caption: string, problem?: string, locked?: string, box: [number, number, number, number] }} Item
 * @typedef {{ id: string, items: Item[], sheet: [number, number], loaded: number }} View
 */

function addStyle() {
  if (document.getElementById("musubi-viewer-style")) return;
  document.head.append(element("style", { id: "musubi-viewer-style" }, STYLE));
}

/** @param {string} view @param {Item} item @param {string} caption @returns {Promise<any>} */
async function save(view, item, caption) {
  const answer = await api.fetchApi("/musubi_tuner/caption", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ view, number: item.number, before: item.caption, caption }),
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
  const whole = element("div", { class: "musubi-item" });
  const text = element("div", { class: "musubi-text" });
  const head = element("div", { class: "musubi-head" });
  const facts = element("span", { class: "musubi-facts" }, item.facts);
  const button = element("button", {}, say("save"));
  const box = element("textarea");
  const tell = (/** @type {string} */ words, /** @type {boolean} */ bad) => {
    facts.textContent = words;
    facts.classList.toggle("musubi-bad", bad);
  };
  box.value = item.caption;
  box.setAttribute("aria-label", say("captions.of", { name: item.name }));
  box.disabled = Boolean(item.locked);
  button.hidden = true;
  if (item.problem || item.locked) tell(item.problem || item.locked || "", true);
  const store = async () => {
    if (box.value.trim() === item.caption) return;
    button.disabled = true;
    try {
      const sent = box.value;
      const answer = await save(view.id, item, sent);
      if (answer.status === 200) {
        item.caption = answer.caption;
        tell(say("saved"), false);
      } else if (answer.status === 409) {
        item.caption = answer.current;
        tell(`${answer.error}. ${say("captions.changed", { caption: answer.current })}`, true);
      } else {
        tell(answer.error, true);
      }
    } catch (error) {
      tell(say("saved.not", { why: /** @type {Error} */ (error).message }), true);
    } finally {
      button.disabled = false;
      button.hidden = box.value.trim() === item.caption;
    }
  };
  box.addEventListener("input", () => (button.hidden = box.value.trim() === item.caption));
  box.addEventListener("keydown", (event) => {
    event.stopPropagation(); // keys typed here are not the graph's
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      store();
    }
  });
  button.addEventListener("click", store);
  head.append(element("b", {}, item.number), element("span", { class: "musubi-name", title: item.name }, item.name), facts, button);
  text.append(head, box);
  whole.append(thumbnail(view, item), text);
  return whole;
}

/** @param {any} node @param {HTMLElement} panel @param {unknown} id */
async function show(node, panel, id) {
  if (typeof id !== "string" || !/^[0-9a-f]{16}$/.test(id)) return;
  const answer = await api.fetchApi(`/musubi_tuner/dataset_view/${id}`, { cache: "no-store" });
  const view = await answer.json();
  if (!answer.ok) {
    panel.replaceChildren(element("div", { class: "musubi-facts" }, view.error));
    return;
  }
  view.loaded = Date.now();
  panel.replaceChildren(...view.items.map((/** @type {Item} */ item) => row(view, item)));
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "MusubiTuner.DatasetViewer",
  init: loadWords,
  nodeCreated(/** @type {any} */ node) {
    if (node.comfyClass !== NODE) return;
    addStyle();
    const panel = element("div", { class: "musubi-viewer" });
    panel.append(element("div", { class: "musubi-facts" }, say("captions.none_yet")));
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
