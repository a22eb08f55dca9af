// Stands in for ComfyUI's /scripts/app.js.
export const app = {
  extensions: [], loaded: [],
  registerExtension: (one) => app.extensions.push(one),
  loadGraphData: async (graph) => app.loaded.push(graph),
  extensionManager: {
    registerSidebarTab: (tab) => { app.tab = tab; },
    setting: { get: () => new URLSearchParams(location.search).get("locale") ?? "en" },
    command: { execute: async () => undefined },
  },
};
