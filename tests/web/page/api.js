// Stands in for ComfyUI's /scripts/api.js.
class Api extends EventTarget {
  queued = [];
  fetchApi(path, options) { return fetch("/api" + path, options); }
  async getWorkflowTemplates() { return { another: ["b", "a"], pack: ["quickstart", "captioning", "train_a_lora_start_here"] }; }
  apiURL(path) { return "/api" + path; }
  async queuePrompt(number, graph) {
    if (this.refusal) throw Object.assign(new Error("Bad Request"), { response: this.refusal });
    this.queued.push(graph);
    return { prompt_id: `00000000-0000-4000-8000-${String(this.queued.length).padStart(12, "0")}` };
  }
  dispatchCustomEvent(name, detail) { this.say(name, detail); }
  say(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }
}
export const api = new Api();
window.api = api;
