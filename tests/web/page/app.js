// Stands in for ComfyUI's /scripts/app.js.
export const app = {
  extensions: [], loaded: [], toasts: [],
  registerExtension: (one) => app.extensions.push(one),
  loadGraphData: async (graph) => app.loaded.push(graph),
  extensionManager: {
    registerSidebarTab: (tab) => { app.tab = tab; },
    setting: { get: () => new URLSearchParams(location.search).get("locale") ?? "en" },
    toast: { add: (toast) => app.toasts.push(toast) },
    command: { execute: async () => undefined },
  },
};
