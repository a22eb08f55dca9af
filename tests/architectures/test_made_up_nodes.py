"""A family's three nodes come from its folder alone: `made_up/dots` (video) and `made_up/spots` (images) get theirs, with their checks,
help pages, names and workflows, and nothing of them stands anywhere else.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.demo.models import write_models
from musubi_backend.weights.safetensors_file import save_atomic


@pytest.fixture(scope="module")
def host(part: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = part("headless.terminal").TerminalHost(tmp_path_factory.mktemp("home"))
    names = {"diffusion_models/dots": ("dots.weight", "blocks.0.grow.weight"), "vae/none": ("nothing",)}
    for file, tensors in names.items():
        path = made.home / "models" / f"{file}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomic({name: torch.zeros(1) for name in tensors}, path, {})
    write_models(made.home / "demo" / "models", kind="wan")
    return made


def problems(part: Any, host: Any, node: Any, **values: Any) -> dict[str, str]:
    return {problem.input: problem.text for problem in part("nodes.checks").check(node, host, values)}


def test_the_catalog_has_three_nodes_of_each_family_in_the_order_of_cards(part: Any) -> None:
    names = list(part("nodes.catalog").BY_NAME)
    for kind, last in (("ModelPaths", "FramePack"), ("LoRATrainer", "FramePack")):
        assert names[names.index(f"{last}{kind}") + 1 :][:2] == [f"Dots{kind}", f"Spots20{kind}"]
    assert names[names.index("FramePackVideoGenerator") + 1 :][:2] == ["DotsVideoGenerator", "Spots20ImageGenerator"]
    titles = [part("nodes.catalog").BY_NAME[name].spec.display_name for name in ("DotsVideoGenerator", "Spots20ImageGenerator")]
    assert titles == ["Dots Video Generator", "Spots 2.0 Image Generator"]


def test_a_family_shows_what_its_folder_lists_and_what_all_have(part: Any) -> None:
    nodes = part("nodes.catalog").BY_NAME
    assert [entry.name for entry in nodes["DotsModelPaths"].spec.inputs] == ["kind", "dit", "vae"]
    quick = nodes["Spots20ModelPaths"].spec.input("dit_quick")
    assert quick.default == "none" and quick.tooltip.endswith("Only for samples while training.")
    generator = [entry.name for entry in nodes["DotsVideoGenerator"].spec.inputs]
    assert generator[:7] == ["models", "prompt", "width", "height", "video_length", "pattern", "seed"]
    assert generator[-3:] == ["start_image_path", "start_image", "device"]
    shared = part("nodes.families").shared_widget("generate", "seed", 0).tooltip
    own = part("backend.musubi_backend.options.registry").options_for("spots_generate_image")["seed"]
    assert shared == f"{own.help} Spots: any." and own.hint == "Spots: any."
    trainer = nodes["DotsLoRATrainer"].spec
    assert trainer.input("guidance_scale").default == 2.0
    assert not {"experts", "high_lora_name"} & {entry.name for entry in (*trainer.inputs, *trainer.outputs)}, "no task has two experts"
    assert nodes["Spots20ImageGenerator"].spec.input("width").tooltip == "Width of the image; multiples of 16."
    outputs = {name: [output.kind for output in nodes[name].spec.outputs] for name in ("DotsVideoGenerator", "Spots20ImageGenerator")}
    assert outputs == {"DotsVideoGenerator": ["VIDEO", "IMAGE", "STRING"], "Spots20ImageGenerator": ["IMAGE", "STRING"]}


def test_their_help_pages_and_names_are_generated(part: Any, repository: Path) -> None:
    texts = part("nodes.help_pages").texts(
        [node.spec for node in part("nodes.catalog").NODES], part("nodes.optimizer_settings").for_the_page()
    )
    page = texts[repository / "web" / "docs" / "MusubiTuner_DotsVideoGenerator.md"]
    assert "# Dots Video Generator" in page and "| `pattern` | grid | How the dots lie |" in page
    names = json.loads(texts[repository / "locales" / "en" / "nodeDefs.json"])
    assert names["MusubiTuner_DotsModelPaths"]["inputs"]["kind"] == {"name": "kind", "tooltip": "Which dots they are"}
    assert names["MusubiTuner_Spots20LoRATrainer"]["display_name"] == "Spots 2.0 LoRA Trainer"


def test_the_page_of_flags_explains_their_tools(part: Any) -> None:
    page = part("backend.musubi_backend.options.document").page()
    assert all(f"## {tool}\n" in page for tool in ("dots_train_network", "dots_generate_video", "spots_generate_image"))


def test_what_the_widgets_alone_show_is_checked_by_the_pack_and_by_the_family(part: Any, host: Any) -> None:
    nodes = part("nodes.catalog").BY_NAME
    found = problems(part, host, nodes["DotsVideoGenerator"](), prompt="3 dots", width=33, video_length=6, pattern="heap")
    assert set(found) == {"prompt", "width", "video_length", "pattern"}
    assert found["prompt"].endswith("write numbers as words")
    assert problems(part, host, nodes["DotsVideoGenerator"](), prompt="dots", width=32, video_length=9, pattern="ring") == {}
    assert problems(part, host, nodes["Spots20ImageGenerator"](), prompt=" ") == {"prompt": "prompt is empty: say what the image shows"}
    wrong = problems(part, host, nodes["DotsModelPaths"](), kind="quick", dit="demo_wan_t2v.safetensors", vae="none.safetensors")
    assert wrong["dit"].endswith("dit expects a Dots transformer")


def test_what_goes_into_a_generation_and_a_training_follows_from_model_widgets_and_family(part: Any, host: Any) -> None:
    nodes, complete = part("nodes.catalog").BY_NAME, part("nodes.checks").complete
    models = {"architecture": "dots", "task": "dots", "fps": 8, "dit": "/m/dots.safetensors", "vae": "/m/none.safetensors"}
    generator = nodes["DotsVideoGenerator"]()
    inputs = complete(generator.spec, {"models": models, "prompt": "dots", "pattern": "ring", "seed": 5})
    values = generator.values(host, inputs)
    argv = part("backend.musubi_backend.options.argv").to_argv("dots_generate_video", {**values, "save_path": "/o"})
    said = dict(itertools.pairwise(argv))
    assert (said["--dit"], said["--fps"], said["--infer_steps"], said["--seed"]) == ("/m/dots.safetensors", "8", "8", "5")
    error = part("backend.musubi_backend.errors").UserError
    with pytest.raises(error, match="dots in a ring start from nothing"):
        generator.check_task(models, {**inputs, "start_image": "an image"})
    with pytest.raises(error, match=r"Dots Video Generator makes Dots videos, but the models are Wan2\.1"):
        asyncio.run(generator.run(host, **{**inputs, "models": {**models, "architecture": "wan"}}))
    trainer = nodes["DotsLoRATrainer"]()
    dataset: dict[str, Any] = {"toml": "/d.toml", "datasets": []}
    sockets = {"latents": {"dataset": dataset}, "text": {}, "lora_config": {}, "optimizer": {}}
    trained = trainer.values(complete(trainer.spec, {"models": models, "guidance_scale": 3.0, **sockets}), dataset)
    own = {"network_module": "networks.lora_dots", "guidance_scale": 3.0, "fsdp": False}
    assert trained == {"dataset_config": "/d.toml", "dit": "/m/dots.safetensors", **own}


def test_a_template_of_the_folder_becomes_a_training_and_a_generation(part: Any) -> None:
    made = part("workflows.contents").workflows(part("backend.musubi_backend.architectures"))
    assert {name for name in made if name.startswith(("dots", "spots"))} == {"dots_lora_training", "dots_generate_with_lora"}
    nodes = {name: node.spec for name, node in part("nodes.catalog").BY_NAME.items()}
    build = part("workflows.layout").build
    workflow = build(made["dots_generate_with_lora"], nodes)
    values = {node["type"]: node["widgets_values"] for node in workflow["nodes"]}
    assert values["MusubiTuner_DotsModelPaths"] == ["slow", "dots.safetensors", "none.safetensors"]
    assert {"ring", "musubi_tuner/my_dots.safetensors"} <= set(values["MusubiTuner_DotsVideoGenerator"])
    assert [link[5] for link in workflow["links"]] == ["MUSUBITUNER_MODELS", "VIDEO"]
    trained = build(made["dots_lora_training"], nodes)
    assert "MusubiTuner_DotsLoRATrainer" in {node["type"] for node in trained["nodes"]}


@pytest.mark.parametrize(("family", "makes", "name"), [
    ("HunyuanVideo 1.5", "VIDEO", "HunyuanVideo15Generator"),
    ("Z-Image", "IMAGE", "ZImageGenerator"),
    ("FLUX.2", "IMAGE", "FLUX2ImageGenerator"),
])  # fmt: skip
def test_a_generator_is_called_after_its_family_and_what_it_makes(part: Any, family: str, makes: str, name: str) -> None:
    card = dataclasses.replace(part("backend.musubi_backend.architectures").cards()["dots"], family=family, makes=makes)
    letters = part("backend.musubi_backend.architectures.card").letters
    assert f"{letters(card.generator_title)}Generator" == name


def test_its_files_are_known_and_facts_of_the_chosen_models_go_along(part: Any, host: Any) -> None:
    node = part("nodes.catalog").BY_NAME["DotsModelPaths"]()
    for kind, facts in (("quick", {}), ("slow", {"fps": 8})):
        inputs = part("nodes.checks").prepared(node, host, {"kind": kind, "dit": "dots.safetensors", "vae": "none.safetensors"})
        result = asyncio.run(node.run(host, **inputs))
        files = {"dit": str(host.home / "models/diffusion_models/dots.safetensors"), "vae": str(host.home / "models/vae/none.safetensors")}
        assert result.values[0] == {"architecture": "dots", "task": "dots", **facts, **files}
        assert result.text == "Dots transformer; Dots VAE, which does nothing"
