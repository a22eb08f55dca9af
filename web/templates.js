// @ts-check
// Templates in the language of the page. ComfyUI knows translations of its own templates only, so the titles and notes of ours are put in as one is
// opened (web/templates/<language>.json). A template is known by a mark, which goes then: what somebody has saved stays as it is.
// And in their order: ComfyUI lists files as the file system gives them.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { language } from "./trainings/words.js";

const MARK = "musubi_template";
const NUMBER = /^(\d+\. )?(.*)$/s; // of a step

/** @type {Map<string, Promise<any>>} */
const tables = new Map();

/** @param {string} name @returns {Promise<any>} */
function table(name) {
  const known = tables.get(name);
  if (known) return known;
  const read = fetch(new URL(`./templates/${name}.json`, import.meta.url)).then((answer) => answer.json());
  tables.set(name, read);
  return read;
}

/** @param {any} graph of a workflow, or folded in it @param {Record<string, string>} texts */
function translate(graph, texts) {
  const said = (/** @type {string} */ english) => {
    const [, number = "", text] = NUMBER.exec(english) ?? [];
    return texts[english] ?? number + (texts[text] ?? text);
  };
  for (const node of graph.nodes ?? []) {
    if (node.title) node.title = said(node.title);
    if (node.type === "MarkdownNote") node.widgets_values = [node.widgets_values[0].split("\n").map(said).join("\n")];
  }
  for (const group of graph.groups ?? []) group.title = said(group.title);
  if (graph.name) graph.name = said(graph.name);
  for (const input of [graph, ...(graph.nodes ?? [])].flatMap((one) => one.inputs ?? [])) if (input.label) input.label = said(input.label);
}

/** The templates of all packs, ours in their order. @type {typeof api.getWorkflowTemplates} */
async function listed() {
  const none = () => []; // without the order, ComfyUI's list is as it would be without us
  const [packs, order] = await Promise.all([listedByServer(), table("order").catch(none)]);
  const place = (/** @type {string} */ name) => order.indexOf(name);
  for (const names of Object.values(packs)) if (names.includes(order[0])) names.sort((one, other) => place(one) - place(other));
  return packs;
}

const listedByServer = api.getWorkflowTemplates.bind(api);
api.getWorkflowTemplates = listed;

app.registerExtension({
  name: "MusubiTuner.Templates",
  async beforeConfigureGraph(workflow) {
    const extra = /** @type {any} */ (workflow).extra;
    if (!extra?.[MARK]) return;
    delete extra[MARK];
    if (language() === "en") return;
    const texts = await table(language());
    for (const graph of [workflow, ...(workflow.definitions?.subgraphs ?? [])]) translate(graph, texts);
  },
});
