// Stands in for ComfyUI's /scripts/api.js.
class Api extends EventTarget {
  fetchApi(path, options) { return fetch("/api" + path, options); }
  apiURL(path) { return "/api" + path; }
  say(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }
}
export const api = new Api();
window.api = api;
