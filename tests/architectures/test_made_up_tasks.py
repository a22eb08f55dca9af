"""Tasks of one family may differ in files, caches and text encoders, and a family may make images: `made_up/spots` has two tasks, and
is cached, trained and generated with by the same verbs and nodes as all others.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.weights.safetensors_file import read_header
from PIL import Image

TASKS = {"plain": ("spots", "spots", ["letters"]), "edit": ("spots_edit", "spe", ["letters", "words"])}


@pytest.fixture(scope="module")
def place(part: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo models of both tasks, and two images with captions and control images."""
    folder = tmp_path_factory.mktemp("spots")
    for kind, _, _ in TASKS.values():
        part("backend.musubi_backend.demo.models").write_models(folder / "models" / "diffusion_models", kind=kind)
    (folder / "models" / "vae").mkdir()
    (folder / "models/diffusion_models/demo_spots_vae.safetensors").rename(folder / "models/vae/demo_spots_vae.safetensors")
    for name, colour in (("a", "red"), ("b", "blue")):
        for where in ("images", "controls"):
            (folder / where).mkdir(exist_ok=True)
            Image.new("RGB", (64, 48), colour).save(folder / where / f"{name}.png")
        (folder / "images" / f"{name}.txt").write_text(f"a {colour} image", encoding="utf-8")
    (folder / "data.toml").write_text(
        "[general]\nresolution = [64, 48]\ncaption_extension = '.txt'\n[[datasets]]\n"
        f"image_directory = '{folder / 'images'}'\ncontrol_directory = '{folder / 'controls'}'\ncache_directory = '{folder / 'caches'}'\n",
        encoding="utf-8",
    )
    return folder


@pytest.fixture
def models(part: Any, place: Path) -> Any:
    """A function: what Model Paths gives for a task, and the node."""
    host = part("headless.terminal").TerminalHost(place)
    node = part("nodes.catalog").BY_NAME["Spots20ModelPaths"]()

    def made(task: str, dit: str = "", **more: str) -> Any:
        names = {"alphabet": "demo_alphabet.safetensors", "vae": "demo_spots_vae.safetensors"}
        names |= {"dictionary": "demo_dictionary.safetensors"} if task == "edit" else {}
        names |= {"dit": f"demo_{dit or TASKS[task][0]}.safetensors", **more}
        problems = {one.input: one.text for one in part("nodes.checks").check(node, host, {"version": task, **names})}
        if problems:
            return problems
        return asyncio.run(node.run(host, **part("nodes.checks").prepared(node, host, {"version": task, **names}))).values[0]

    return made


def test_the_file_of_one_task_is_rejected_for_another_by_name(models: Any) -> None:
    assert models("plain", "spots_edit")["dit"].endswith("is a Spots editing transformer; dit expects a Spots transformer")
    assert models("edit", "spots")["dit"].endswith("is a Spots transformer; dit expects a Spots editing transformer")
    assert "dictionary" not in models("plain") and "dictionary" in models("edit")


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_cached_trained_and_generated_with_in_its_own_caches_and_encoders(
    part: Any, place: Path, models: Any, tmp_path: Path, task: str
) -> None:
    _, short, texts = TASKS[task]
    main, to_argv = part("backend.musubi_backend.__main__").main, part("backend.musubi_backend.options.argv").to_argv
    cache, chosen = part("nodes.cache"), models(task)
    dataset = {"toml": str(place / "data.toml"), "datasets": [{"cache_directory": str(place / "caches")}]}
    for node, verb, tool in (
        ("VAELatentCache", "cache_latents", "cache_latents"),
        ("TextEncoderCache", "cache_text", "cache_text_encoder_outputs"),
    ):
        spec = part("nodes.catalog").BY_NAME[node].spec
        given = part("nodes.checks").complete(spec, {"dataset": dataset, "models": chosen})
        assert main([f"spots_{tool}", *to_argv(f"spots_{tool}", {**cache.caching_values(spec, verb, given), "device": "cpu"})]) == 0
    card = part("nodes.models").card_of(chosen)
    latents, text = (cache.cache_files(dataset, card, text=text) for text in (False, True))
    assert [path.name for path in latents] == [f"{name}_0064x0048_{short}.safetensors" for name in "ab"]
    names = list(read_header(latents[0]).tensors)
    assert names == (["latents_6x8_float32", "latents_control_0_6x8_float32"] if task == "edit" else ["latents_6x8_float32"])
    assert [name.removesuffix("_float32") for name in read_header(text[0]).tensors] == texts
    model = [word for name in ("dit", "vae", "alphabet", "dictionary") if name in chosen for word in (f"--{name}", chosen[name])]
    common = ["--model_version", task, *model]
    trained = ["--dataset_config", dataset["toml"], "--output_dir", tmp_path, "--output_name", "lora", "--max_train_steps", "2"]
    words = [*trained, "--network_module", "networks.lora_dots", "--learning_rate", "1e-2", "--optimizer_type", "AdamW", "--sdpa"]
    assert main(["spots_train_network", *common, *map(str, words)]) == 0
    assert "lora_unet_blocks_1_ff_proj_out.lora_up.weight" in read_header(tmp_path / "lora.safetensors").tensors
    request = ["--prompt", "a red image", "--video_size", "48", "64", "--save_path", tmp_path / "made", "--device", "cpu"]
    request += ["--lora_weight", tmp_path / "lora.safetensors", "--control_image_path", place / "controls" / "a.png"]
    assert main(["spots_generate_image", *common, *map(str, request)]) == 0
    (image,) = (tmp_path / "made").iterdir()
    assert image.suffix == ".png" and Image.open(image).size == (64, 48)
