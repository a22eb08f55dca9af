// @ts-check
// A checkpoint in somebody's own graph: which LoRA loader it goes into, and the graph with it there. Graphs are in ComfyUI's API format.

/**
 * @typedef {{ class_type: string, inputs: Record<string, any>, _meta?: { title?: string } }} ApiNode
 * @typedef {Record<string, ApiNode>} Prompt
 * @typedef {{ id: string, title: string, type: string, inputs: string[] }} Loader  a node and its inputs that choose a LoRA
 * @typedef {{ id: string, input: string, expert: string }} Place  expert: of which LoRA of a training of two experts, "" for the only one
 * @typedef {{ places: Place[], problem: null } | { places: never[], problem: { key: string, values: Record<string, string> } }} Found
 */

export const MARK = "LoRA under test";
const INPUT = /^(?:\w+_)?lora(?:_name)?(?:_\d+)?$/i; // of ComfyUI's own loaders, of this pack's nodes and of common packs
const NONE = /^none$/i;
const OF_HIGH = /^high_/; // the generators of this pack: LoRAs of the high-noise expert
const TRAINS = /^MusubiTuner_\w*LoRATrainer$/;

/** Whether an input of this name may choose a LoRA. @param {string} name */
export const mayChoose = (name) => INPUT.test(name);

/** @param {any} value @returns {value is [string, number]} */
const isLink = (value) => Array.isArray(value) && value.length === 2 && typeof value[1] === "number";

/** All nodes that load a LoRA by its name. @param {Prompt} prompt @param {(type: string, input: string) => boolean} isChoice whether an input is a list to choose from: one that is linked may be a model */
export function loaders(prompt, isChoice) {
  /** @type {Loader[]} */
  const found = [];
  for (const [id, node] of Object.entries(prompt)) {
    const inputs = Object.entries(node.inputs ?? {}).filter(([name, value]) => INPUT.test(name) && (typeof value === "string" || (isLink(value) && isChoice(node.class_type, name)))).map(([name]) => name);
    if (inputs.length) found.push({ id, title: node._meta?.title ?? node.class_type, type: node.class_type, inputs });
  }
  return found;
}

/**
 * Where the LoRAs of a checkpoint go: into the loaders whose title says so, else into the only one there is.
 * @param {Prompt} prompt @param {string[]} experts [""], or those of a training with a LoRA for each @param {(type: string, input: string) => boolean} isChoice @returns {Found}
 */
export function places(prompt, experts, isChoice) {
  const all = loaders(prompt, isChoice);
  const named = (/** @type {Loader[]} */ some) => some.map((one) => `“${one.title}” (${one.id})`).join(", ");
  const marked = all.filter((one) => one.title.toLowerCase().includes(MARK.toLowerCase()));
  const used = all.filter((one) => one.inputs.some((name) => !NONE.test(prompt[one.id].inputs[name])));
  const chosen = marked.length ? marked : used.length ? used : all;
  const problem = (/** @type {string} */ key) => ({ places: /** @type {never[]} */ ([]), problem: { key, values: { mark: MARK, loaders: named(all) } } });
  if (!all.length) return problem("flow.no_loader");
  if (experts.length > 1) {
    const found = experts.flatMap((expert) => {
      const own = chosen.filter((one) => one.inputs.some((name) => OF_HIGH.test(name)) || new RegExp(`\\b${expert}\\b`, "i").test(one.title.replaceAll("_", " ")));
      return own.flatMap((one) => inputsOf(prompt, one, expert).map((input) => ({ id: one.id, input, expert })));
    });
    return experts.every((expert) => found.some((one) => one.expert === expert)) ? { places: found, problem: null } : problem("flow.experts");
  }
  if (!marked.length && chosen.length > 1) return problem("flow.several");
  return { places: chosen.flatMap((one) => inputsOf(prompt, one, "").map((input) => ({ id: one.id, input, expert: experts[0] }))), problem: null };
}

/** The inputs of a loader that get the LoRA: the first that is set, and those that say the same. @param {Prompt} prompt @param {Loader} loader @param {string} expert */
function inputsOf(prompt, loader, expert) {
  const own = loader.inputs.filter((name) => !expert || !loader.inputs.some((one) => OF_HIGH.test(one)) || OF_HIGH.test(name) === (expert === "high"));
  const value = (/** @type {string} */ name) => prompt[loader.id].inputs[name];
  const set = own.filter((name) => !NONE.test(value(name)));
  const first = set.find((name) => !OF_HIGH.test(name)) ?? set[0] ?? own[0];
  return own.filter((name) => name === first || (!NONE.test(value(first)) && String(value(name)) === String(value(first))));
}

/**
 * The graph with the LoRAs of a checkpoint, and nothing that does not depend on them: what else the graph makes would be made again for each.
 * @param {Prompt} prompt @param {Place[]} where @param {Record<string, string>} loras names in ComfyUI's list, by expert @returns {Prompt}
 */
export function withLoras(prompt, where, loras) {
  /** @type {Prompt} */
  const changed = structuredClone(prompt);
  for (const { id, input, expert } of where) changed[id].inputs[input] = loras[expert];
  const links = (/** @type {string} */ id) => Object.values(changed[id]?.inputs ?? {}).filter(isLink).map(([from]) => String(from));
  const kept = new Set(where.map(({ id }) => id));
  let before = -1;
  while (before !== kept.size) {
    before = kept.size;
    for (const id of Object.keys(changed)) if (links(id).some((from) => kept.has(from))) kept.add(id); // what they lead to
  }
  const waiting = [...kept];
  while (waiting.length) {
    for (const from of links(/** @type {string} */ (waiting.pop()))) if (from in changed && !kept.has(from)) (kept.add(from), waiting.push(from)); // and what that needs
  }
  return Object.fromEntries(Object.entries(changed).filter(([id]) => kept.has(id)));
}

/** The title of a node that would train again, or "". @param {Prompt} prompt */
export const trains = (prompt) => Object.values(prompt).filter((node) => TRAINS.test(node.class_type)).map((node) => node._meta?.title ?? node.class_type)[0] ?? "";

/** The prompt with the id of its sample in it: ComfyUI keeps `_meta` and does nothing with it. @param {Prompt} prompt @param {string} sample @returns {Prompt} */
export function marked(prompt, sample) {
  return Object.fromEntries(Object.entries(prompt).map(([id, node], place) => [id, place ? node : { ...node, _meta: { ...node._meta, musubi_tuner_sample: sample } }]));
}

/** The text of the positive prompt, where one can be found. @param {Prompt} prompt */
export function positive(prompt) {
  for (const node of Object.values(prompt)) {
    let at = node.inputs?.positive;
    for (let hops = 0; hops < 8 && isLink(at); hops += 1) {
      const inputs = prompt[String(at[0])]?.inputs ?? {};
      const text = [inputs.text, inputs.prompt, inputs.positive_prompt].find((one) => typeof one === "string" && one.trim());
      if (text) return String(text);
      at = inputs.positive ?? inputs.conditioning ?? inputs.text ?? Object.values(inputs).find(isLink);
    }
  }
  return "";
}

/**
 * The workflow with the same LoRAs in its widgets, as images and videos keep it: opened from one, it makes that one.
 * @param {any} workflow @param {Prompt} before @param {Place[]} where @param {Record<string, string>} loras
 */
export function workflowWith(workflow, before, where, loras) {
  const changed = structuredClone(workflow ?? null);
  for (const { id, input, expert } of where) {
    const node = inside(changed, id.split(":"));
    const old = before[id].inputs[input];
    const values = node?.widgets_values;
    if (Array.isArray(values)) node.widgets_values = values.map((value) => (typeof old === "string" && value === old ? loras[expert] : value));
    else if (values && input in values) values[input] = loras[expert];
  }
  return changed;
}

/** A node by its place, of a subgraph too. @param {any} workflow @param {string[]} ids @returns {any} */
function inside(workflow, ids) {
  let nodes = workflow?.nodes;
  for (const [depth, id] of ids.entries()) {
    const node = nodes?.find((/** @type {any} */ one) => String(one.id) === id);
    if (!node || depth === ids.length - 1) return node;
    nodes = workflow.definitions?.subgraphs?.find((/** @type {any} */ one) => one.id === node.type)?.nodes;
  }
  return undefined;
}
