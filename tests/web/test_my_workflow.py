"""A checkpoint in somebody's own graph: which loader it goes into, what of the graph is queued, and the window that does it. Needs Chromium
and its driver."""

from __future__ import annotations

from typing import Any

from browser import Browser

from .recorded import STATES, Recorded

Prompt = dict[str, dict[str, Any]]


def node(kind: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title or kind}}


def graph(**changed: Any) -> Prompt:
    """A small graph: model, LoRA, sampler with a prompt, an image saved; and one next to it that does not use the LoRA."""
    return {
        "1": node("UNETLoader", unet_name="wan.safetensors"),
        "2": node("LoraLoaderModelOnly", model=["1", 0], lora_name="old.safetensors", strength_model=0.8),
        "3": node("CLIPTextEncode", text=["7", 0]),
        "4": node("KSampler", model=["2", 0], positive=["3", 0], seed=42),
        "5": node("SaveImage", images=["4", 0]),
        "6": node("SaveImage", images=["1", 0]),
        "7": node("Text", text="a cat"),
        **changed,
    }


OTHER = node("LoraLoader", "speed", model=["1", 0], lora_name="speed.safetensors")
TRAINER = node("MusubiTuner_WanLoRATrainer", "Wan LoRA Trainer", output_name="cat")
MANY = node(
    "MusubiTuner_WanGenerator", lora_1="a.safetensors", lora_2="b.safetensors", high_lora_1="a.safetensors", high_lora_2="c.safetensors"
)
HIGH = node("LoraLoaderModelOnly", "LoRA under test (high)", model=["1", 0], lora_name="h.safetensors")
LOW = node("LoraLoaderModelOnly", "LoRA under test (low)", model=["8", 0], lora_name="l.safetensors")
BOTH = ["low", "high"]
CASES: dict[str, tuple[Prompt, list[str], Any]] = {
    "the only loader": (graph(), [""], ["2.lora_name"]),
    "one that is off does not count": (graph(**{"8": node("X", lora_name="None")}), [""], ["2.lora_name"]),
    "several, none marked": (graph(**{"8": OTHER}), [""], "flow.several"),
    "several, one marked": (graph(**{"8": {**OTHER, "_meta": {"title": "my lora under TEST"}}}), [""], ["8.lora_name"]),
    "two marked get the same": (graph(**{"2": LOW, "8": HIGH}), [""], ["2.lora_name", "8.lora_name"]),
    "one for each expert": (graph(**{"2": LOW, "8": HIGH}), BOTH, ["2.lora_name low", "8.lora_name high"]),
    "experts, not marked": (graph(**{"8": OTHER}), BOTH, "flow.experts"),
    "none": ({"1": node("UNETLoader", unet_name="x")}, [""], "flow.no_loader"),
    "a name that is linked": (graph(**{"2": node("LoraLoaderModelOnly", lora_name=["8", 0]), "8": TRAINER}), [""], ["2.lora_name"]),
    "a link that is a model": (
        {"1": node("WanVideoModelLoader", lora=["2", 0]), "2": node("WanVideoLoraSelect", lora="a")},
        [""],
        ["2.lora"],
    ),
    "our generator": ({"1": MANY}, [""], ["1.high_lora_1", "1.lora_1"]),
    "our generator, experts": ({"1": MANY}, BOTH, ["1.high_lora_1 high", "1.lora_1 low"]),
}


def test_the_loader_is_the_marked_one_or_the_only_one_and_what_does_not_depend_on_it_is_left_out(running: Browser) -> None:
    call = """
      const { places } = await import("/extensions/pack/trainings/under_test.js");
      const choice = (type) => type === "LoraLoaderModelOnly";
      return args[0].map(([prompt, experts]) => {
        const { places: found, problem } = places(prompt, experts, choice);
        return problem ? problem.key : found.map((one) => `${one.id}.${one.input} ${one.expert}`.trim()).sort();
      });
    """
    assert dict(zip(CASES, running.run(call, [case[:2] for case in CASES.values()]), strict=True)) == {
        name: wanted for name, (_, _, wanted) in CASES.items()
    }
    change = """
      const { positive, trains, withLoras, workflowWith } = await import("/extensions/pack/trainings/under_test.js");
      const [prompt, workflow] = args;
      const where = [{ id: "2", input: "lora_name", expert: "" }, { id: "9:4", input: "lora_name", expert: "" }];
      const out = withLoras(prompt, where.slice(0, 1), { "": "new" });
      return [out, prompt, positive(out), trains(out), workflowWith(workflow, { ...prompt, "9:4": prompt["2"] }, where, { "": "new" })];
    """
    before = graph(**{"8": TRAINER, "9": node("X", job=["8", 0])})
    inner = {"definitions": {"subgraphs": [{"id": "sub", "nodes": [{"id": 4, "widgets_values": {"lora_name": "old", "strength": 1}}]}]}}
    nodes = [{"id": 2, "widgets_values": ["old.safetensors", 0.8]}, {"id": 9, "type": "sub", "widgets_values": ["old.safetensors"]}]
    out, same, text, again, workflow = running.run(change, before, {"nodes": nodes, **inner})
    assert same == before and out == {key: one for key, one in graph(**{"2": out["2"]}).items() if key != "6"}
    assert out["2"]["inputs"] == {"model": ["1", 0], "lora_name": "new", "strength_model": 0.8}
    assert (text, again) == ("a cat", "") and out["4"]["inputs"]["seed"] == 42
    assert workflow["nodes"][0]["widgets_values"] == ["new", 0.8] and workflow["nodes"][1]["widgets_values"] == ["old.safetensors"]
    assert workflow["definitions"]["subgraphs"][0]["nodes"][0]["widgets_values"] == {"lora_name": "new", "strength": 1}
    assert running.run(change, {**before, "4": node("KSampler", model=["2", 0], job=["8", 0])}, None)[3] == "Wan LoRA Trainer"


def test_checkpoints_are_queued_in_the_open_graph_and_shown_by_step_and_in_a_kept_one_later(running: Browser, recorded: Recorded) -> None:
    workflow = {"nodes": [{"id": 2, "widgets_values": ["old.safetensors", 0.8]}]}
    dialog = "document.querySelector('.mt-flow')"
    button = (
        "[...document.querySelectorAll('.mt-detail button, .mt-flow button')].find(one => (one.innerText || one.ariaLabel).trim() === '{}')"
    )

    def opens(output: Prompt, said: str) -> None:
        """Waits until the window says where the checkpoint goes, and what is kept has come."""
        running.run("window.app.graph_ = args[0];", {"output": output, "workflow": workflow})
        running.run(f"{dialog}?.close(); {button.format('Sample with my workflow…')}.click();")
        words = f"{dialog}.querySelector('p.mt-said').textContent"
        running.wait(f"{dialog}?.querySelectorAll('input').length === 4 && {words}.includes('{said}') ? 1 : 0")

    opens(graph(**{"8": OTHER}), "“LoraLoaderModelOnly” (2), “speed” (8)")
    assert running.run(f"return {button.format('Queue')}.disabled;")
    seen = "[...document.querySelectorAll('.mt-flow .mt-buttons button, .mt-flow .mt-tools button')].filter(one => one.offsetWidth).length"
    assert running.run(f"return {seen};") == 1, "nothing waits and nothing is kept: only Queue"
    opens(graph(), "The checkpoint goes into “LoraLoaderModelOnly” (2), lora_name")
    boxes = f"{dialog}.querySelectorAll('.mt-storage input')"
    assert running.run(f"return [...{boxes}].map(one => one.checked);") == [True, False, False], "the newest is chosen"
    running.run(f"{boxes}[1].click(); {button.format('Queue')}.click();")
    running.wait(f"{dialog}.innerText.includes('2 of 2 queued') ? 1 : 0")
    queued = running.run("return window.api.queued;")
    assert [one["output"]["2"]["inputs"]["lora_name"] for one in queued] == ["musubi_tuner/600.safetensors", "musubi_tuner/400.safetensors"]
    assert [one["workflow"]["nodes"][0]["widgets_values"][0] for one in queued] == [
        "musubi_tuner/600.safetensors",
        "musubi_tuner/400.safetensors",
    ]
    assert all(one["output"]["4"] == graph()["4"] for one in queued), "the seed is the graph's"
    noted = [body for route, body in recorded.asked if route.endswith("/workflow_samples")]
    assert [(one["step"], one["workflow"], one["prompt"]) for one in noted] == [(600, "a_b_ wan", "a cat"), (400, "a_b_ wan", "a cat")]
    marks = [one["output"]["1"]["_meta"]["musubi_tuner_sample"] for one in queued]
    assert marks == [one["id"] for one in recorded.workflow_samples], "noted before it is queued, with the id in the prompt"
    cell = "document.querySelector('.mt-gallery tbody tr td .mt-sample')"
    running.wait(f"{cell}?.getAttribute('aria-label') === 'step 600 · a_b_ wan · a cat' ? 1 : 0")
    recorded.workflow_samples[0] |= {"state": "failed", "files": [], "text": "KSampler: out of memory"}
    recorded.workflow_samples[1] |= {"state": "queued", "files": []}
    running.run("window.api.say('musubi_tuner.jobs', { jobs: [args[0]], removed: [] });", {**STATES["running"], "version": 2})
    running.wait("document.querySelector('.mt-gallery .mt-bad')?.textContent === 'KSampler: out of memory' ? 1 : 0")
    assert running.run("return document.querySelector('.mt-gallery').innerText.includes(\"in ComfyUI's queue\");")

    recorded.occupied = STATES["running"]["id"]
    opens({"1": node("Note")}, "The checkpoint goes into")  # the open graph has no loader: the one kept before is taken
    assert running.run(f"return {dialog}.querySelector('select').value;") == "a_b_ wan"
    error = {"message": "Prompt outputs failed validation"}
    wrong = {"message": "Value not in list", "details": "unet_name"}
    running.run("window.api.refusal = args[0];", {"error": error, "node_errors": {"1": {"class_type": "UNETLoader", "errors": [wrong]}}})
    running.run(f"{button.format('Queue')}.click();")
    running.wait(f"{dialog}.innerText.includes('Waiting for the end of the training') ? 1 : 0")
    assert len(running.run("return window.api.queued;")) == 2
    recorded.settings["generation"] = "go_ahead"
    running.run(f"{button.format('Do not wait')}.click();")
    running.wait(f"{dialog}.innerText.includes('Step 600 was not queued') ? 1 : 0")
    assert "UNETLoader (1): Value not in list (unet_name)" in running.run(f"return {dialog}.innerText;")
    assert len(recorded.workflow_samples) == 2, "its note is taken back"
    running.run(f"{button.format('Forget this workflow')}.click();")
    running.wait(f"{dialog}.querySelectorAll('option').length === 1 ? 1 : 0")
    assert recorded.kept == {}
