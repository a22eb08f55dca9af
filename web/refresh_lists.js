// @ts-check
// When a training or a LoRA tool has written a file, the lists that are open in the page offer it without a press of R.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const WRITER = /^MusubiTuner_(\w+LoRATrainer|LoRA(PostHocEMA|FormatConverter|Merger|Extractor))$/;
let written = false;

app.registerExtension({
  name: "MusubiTuner.RefreshLists",
  setup() {
    api.addEventListener("execution_start", () => {
      written = false;
    });
    api.addEventListener("executing", ({ detail: id }) => {
      const type = id == null ? undefined : app.graph.getNodeById(id)?.type;
      written ||= WRITER.test(type ?? "");
    });
    api.addEventListener("execution_success", () => {
      if (written) app.refreshComboInNodes();
    });
  },
});
