// When a training has written a LoRA, the lists that are open in the page offer it without a press of R.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TRAINER = /^MusubiTuner_\w+LoRATrainer$/;
let trained = false;

app.registerExtension({
  name: "MusubiTuner.RefreshLists",
  setup() {
    api.addEventListener("execution_start", () => {
      trained = false;
    });
    api.addEventListener("executing", ({ detail: id }) => {
      const type = id == null ? undefined : app.graph.getNodeById(id)?.type;
      trained ||= TRAINER.test(type ?? "");
    });
    api.addEventListener("execution_success", () => {
      if (trained) app.refreshComboInNodes();
    });
  },
});
