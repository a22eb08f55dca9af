// @ts-check
// "Upload clips…": many files, chosen or dropped, into a folder of their own in ComfyUI's input folder, with a caption for those without one.
// Files go through ComfyUI's own upload route, which keeps them inside that folder and never replaces one.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { shown } from "./trainings/dialog.js";
import { button, element, addStylesheet } from "./trainings/element.js";
import { ask } from "./trainings/server.js";
import { loadWords, say } from "./trainings/words.js";

const FOLDERS = /** @type {Record<string, string>} */ ({ MusubiTuner_DatasetConfig: "path", MusubiTuner_CaptionImages: "path" }); // node -> the widget that names a folder
const VIDEOS = /\.(mp4|webm|avi|mkv|mov|flv|wmv|m4v|mpe?g|ts|m2ts|mts|3gp|ogv|gif)$/i;
const IMAGES = /\.(png|jpe?g|webp|bmp|avif|tiff?)$/i;
const TEXTS = /\.(txt|jsonl)$/i;

const STYLE = `
.musubi-upload { box-sizing: border-box; width: min(560px, 92vw); border: 1px solid var(--border-color, #444); border-radius: 8px; padding: 18px; font: 14px sans-serif;
  background: var(--comfy-menu-bg, #222); color: var(--input-text, #ddd); }
.musubi-upload::backdrop { background: rgb(0 0 0 / 55%); }
.musubi-upload form { display: flex; flex-direction: column; gap: 10px; }
.musubi-upload h2 { margin: 0; font-size: 16px; }
.musubi-upload label { display: flex; flex-direction: column; gap: 3px; }
.musubi-upload input[type=text] { font: inherit; color: inherit; background: var(--comfy-input-bg, #111); border: 1px solid var(--border-color, #444);
  border-radius: 4px; padding: 6px; }
.musubi-upload .musubi-drop { border: 2px dashed var(--border-color, #666); border-radius: 8px; padding: 22px; text-align: center; cursor: pointer; }
.musubi-upload .musubi-drop.musubi-over { border-color: var(--p-primary-color, #4a9); }
.musubi-upload .musubi-buttons { display: flex; gap: 8px; justify-content: flex-end; }
.musubi-upload .musubi-bad { color: var(--mt-red-text); }
.musubi-upload input::placeholder { color: color-mix(in srgb, var(--mt-text) 65%, var(--mt-field)); }
`;

/** The name of a folder directly in the input folder, or "" for what cannot be one. @param {string} text */
export function folderName(text) {
  const name = text.trim();
  return /^[^\\/:*?"<>|\x00-\x1f]{1,80}$/.test(name) && !name.startsWith(".") ? name : "";
}

/** @param {string} name */
function stem(name) {
  return name.replace(/\.[^.]*$/, "");
}

/** Files sorted into clips, images, texts and those that are none of these. @param {File[]} files */
export function sorted(files) {
  const of = (/** @type {RegExp} */ kind) => files.filter((file) => kind.test(file.name));
  const [videos, images, texts] = [of(VIDEOS), of(IMAGES), of(TEXTS)];
  const known = new Set([...videos, ...images, ...texts]);
  return { videos, images, texts, others: files.filter((file) => !known.has(file)) };
}

/** Uploads one file; gives the name it has now. Throws what the server says. @param {File} file @param {string} folder @returns {Promise<string>} */
async function send(file, folder) {
  const body = new FormData();
  body.append("image", file, file.name);
  body.append("type", "input");
  body.append("subfolder", folder);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body }).catch(() => {
    throw new Error(say("upload.refused", { name: file.name, why: say("list.problem") })); // all that a browser says is that it failed
  });
  if (answer.status === 413) throw new Error(say("upload.too_large", { name: file.name }));
  if (!answer.ok) throw new Error(say("upload.refused", { name: file.name, why: `${answer.status} ${answer.statusText}` }));
  return (await answer.json()).name;
}

/**
 * All files, and a caption for each clip or image that brings none and has none there.
 * @param {File[]} files @param {string} folder @param {string} caption @param {(done: number, all: number) => boolean} tell called after each; false: send no more
 */
export async function upload(files, folder, caption, tell) {
  const { videos, images, texts } = sorted(files);
  const captioned = new Set(texts.map((file) => stem(file.name)));
  const media = [...videos, ...images];
  let done = 0;
  let wanted = true;
  const step = async (/** @type {File} */ file) => {
    const name = await send(file, folder);
    wanted = tell((done += 1), media.length + texts.length) !== false;
    return name;
  };
  for (const file of texts) if (wanted) await step(file);
  /** @type {Set<string>} */
  const there = new Set(caption ? (await ask(`captions/${encodeURIComponent(folder)}`)).names : []);
  for (const file of media) {
    if (!wanted) break;
    const name = `${stem(await step(file))}.txt`;
    if (!caption || captioned.has(stem(file.name)) || there.has(name)) continue;
    await send(new File([caption], name, { type: "text/plain" }), folder);
    there.add(name);
  }
  return { videos: videos.length, images: images.length };
}

/** @param {File[]} files @param {(folder: string, source: string) => void} taken called once they are there */
function openDialog(files, taken) {
  if (!document.getElementById("musubi-upload-style")) {
    document.head.append(element("style", { id: "musubi-upload-style" }, STYLE));
  }
  addStylesheet(new URL("./trainings/style.css", import.meta.url).href);
  const dialog = element("dialog", { class: "musubi-upload mt-setting", "aria-labelledby": "musubi-upload-title" });
  let left = false; // while files are on their way
  const form = element("form");
  const field = (/** @type {string} */ name, /** @type {string} */ value, /** @type {string} */ placeholder) => {
    const box = element("input", { type: "text", value, placeholder });
    form.append(element("label", {}, name, box));
    return box;
  };
  /** @type {File[]} */
  let chosen = [];
  const chooser = element("input", { type: "file", multiple: true, hidden: true });
  const drop = element("div", { class: "musubi-drop", tabindex: "0", role: "button" });
  const said = element("div", { role: "status", tabindex: "-1" });
  const tell = (/** @type {string} */ words, bad = false) => {
    said.textContent = words;
    said.classList.toggle("musubi-bad", bad);
  };
  const start = button(say("upload.start"), () => undefined, { icon: "pi-upload", kind: "mt-first" });
  start.type = "submit";
  const cancel = button(say("cancel"), () => dialog.close());
  const take = (/** @type {File[]} */ more) => {
    chosen = [...chosen, ...more];
    const { videos, images, texts, others } = sorted(chosen);
    const counts = { videos: videos.length, images: images.length, texts: texts.length };
    drop.textContent = chosen.length
      ? say("upload.chosen", counts)
      : say("upload.drop");
    start.disabled = videos.length + images.length === 0;
    tell(others.length ? say("upload.left_out", { names: others.slice(0, 5).map((file) => file.name).join(", ") }) : "");
  };
  form.append(element("h2", { id: "musubi-upload-title" }, say("upload.title")));
  const folder = field(say("upload.folder"), "my_clips", "my_clips");
  form.append(drop, chooser);
  const caption = field(say("upload.caption"), "", "ohwx dog");
  const buttons = element("div", { class: "musubi-buttons" });
  buttons.append(cancel, start);
  form.append(said, buttons);
  dialog.append(form);

  drop.addEventListener("click", () => chooser.click());
  drop.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && chooser.click());
  chooser.addEventListener("change", () => take([...(chooser.files ?? [])]));
  for (const name of /** @type {const} */ (["dragover", "drop"])) {
    dialog.addEventListener(name, (event) => {
      event.preventDefault();
      event.stopPropagation();
      drop.classList.toggle("musubi-over", name === "dragover");
      if (name === "drop") take([...(event.dataTransfer?.files ?? [])]);
    });
  }
  dialog.addEventListener("close", () => (left = true));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const name = folderName(folder.value);
    folder.setAttribute("aria-invalid", String(!name));
    if (!name) return folder.focus(), tell(say("upload.no_folder"), true);
    start.disabled = true;
    said.focus();
    try {
      const counts = await upload(chosen, name, caption.value.trim(), (done, all) => (tell(say("upload.done", { done, all })), !left));
      if (left) return;
      taken(name, counts.videos ? "video folder" : "image folder");
      dialog.close();
    } catch (error) {
      tell(/** @type {Error} */ (error).message, true);
      start.disabled = false;
    }
  });
  take(files);
  return shown(dialog);
}

/** @param {any} node @param {string | undefined} name @param {string} value */
function put(node, name, value) {
  const widget = node.widgets?.find((/** @type {any} */ one) => one.name === name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value);
}

/** Where the folder goes that was uploaded: (node, widget), of a node of ours or of a subgraph that shows such a widget. @param {any} node @returns {string | undefined} */
function placeOf(node) {
  const own = FOLDERS[node.comfyClass ?? node.type];
  if (own) return own;
  for (const inner of node.subgraph?.nodes ?? []) {
    const slot = inner.inputs?.find((/** @type {any} */ input) => input.name === FOLDERS[inner.comfyClass ?? inner.type]);
    const link = slot?.link == null ? undefined : node.subgraph.links?.get?.(slot.link) ?? node.subgraph.getLink?.(slot.link);
    const outside = link && node.subgraph.inputs?.[link.origin_slot]?.name;
    if (outside && String(link.origin_id) === "-10") return outside; // ids are numbers or texts, by version
  }
  return undefined;
}

/** The source of a dataset follows what was uploaded, inside a subgraph too. @param {any} node @param {string} source */
function setSource(node, source) {
  for (const one of [node, ...(node.subgraph?.nodes ?? [])]) {
    if ((one.comfyClass ?? one.type) === "MusubiTuner_DatasetConfig") put(one, "source", source);
  }
}

/** @param {any} node @param {File[]} [files] */
function open(node, files = []) {
  openDialog(files, (folder, source) => {
    put(node, placeOf(node), folder);
    setSource(node, source);
    node.graph?.setDirtyCanvas?.(true, true);
  });
}

/** @param {any} node */
function offer(node) {
  if (node.musubiUpload || !placeOf(node) || !node.addWidget) return;
  const button = node.addWidget("button", "musubi_upload", null, () => open(node));
  button.label = say("upload");
  button.serialize = false;
  button.options.serialize = false;
  node.musubiUpload = button;
  node.onDragOver = (/** @type {DragEvent} */ event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
  node.onDragDrop = (/** @type {DragEvent} */ event) => {
    const files = [...(event.dataTransfer?.files ?? [])];
    const some = sorted(files);
    if (!some.videos.length && !some.images.length) return false;
    open(node, files);
    return true;
  };
}

app.registerExtension({
  name: "MusubiTuner.UploadClips",
  init: loadWords,
  nodeCreated(node) {
    offer(node);
  },
  afterConfigureGraph() {
    for (const node of app.graph.nodes) if (/** @type {any} */ (node).subgraph) offer(node);
  },
  getNodeMenuItems(node) {
    return placeOf(node) ? [{ content: say("upload"), callback: () => open(node) }] : [];
  },
});
