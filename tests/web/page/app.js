// Stands in for ComfyUI's /scripts/app.js.
export const app = {
  extensions: [], loaded: [], toasts: [], commands: [], noted: 0,
  graph: { nodes: [] }, canvas: {},
  registerExtension: (one) => app.extensions.push(one),
  loadGraphData: async (graph) => app.loaded.push(graph),
  graphToPrompt: async () => app.graph_,
  extensionManager: {
    workflow: { activeWorkflow: { filename: "a/b: wan", changeTracker: { captureCanvasState: () => app.noted++ } } },
    registerSidebarTab: (tab) => { app.tab = tab; },
    setting: { get: () => new URLSearchParams(location.search).get("locale") ?? "en" },
    toast: { add: (toast) => app.toasts.push(toast) },
    command: { execute: async (name) => app.commands.push(name) },
  },
};
