"""Our Qwen2.5-VL against transformers' own: pixels, prompt, weights in every layout; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from musubi_backend.demo.qwen_vl import GEOMETRY
from musubi_backend.encoders.qwen_vl import QwenVL
from musubi_backend.encoders.qwen_vl_pixels import Pixels, fitting_size, of_clip, of_image
from musubi_backend.errors import UserError
from musubi_backend.memory.fp8 import Fp8Linear
from musubi_backend.tools.caption import Describer, Unanswered
from musubi_backend.tools.caption_media import chosen_frames, clip_pixels
from musubi_backend.tools.settings import DescriberSettings
from musubi_backend.weights.geometry import GEOMETRY_KEY
from musubi_backend.weights.recognise import recognise
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic
from PIL import Image

CPU = torch.device("cpu")
SMALL = (28 * 28 * 4, 112 * 112)


def photo(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(getattr(data, name)()[..., :3])


@pytest.fixture(scope="module")
def random_model(vl_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's shapes with random weights, in ComfyUI's layout: every layer matters."""
    folder = tmp_path_factory.mktemp("random")
    dice = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(t.shape, generator=dice) * (0.3 if t.ndim > 1 else 1) for name, t in load(vl_model).items()}
    save_atomic(tensors, folder / "random.safetensors", {GEOMETRY_KEY: json.dumps(asdict(GEOMETRY))})
    shutil.copytree(vl_model.parent / "qwen25_tokenizer", folder / "qwen25_tokenizer")
    return folder / "random.safetensors"


@pytest.mark.parametrize("size", [(300, 200), (90, 500), (28, 28), (1000, 600)])
def test_patches_are_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image = photo("astronaut").resize(size)
    theirs = Qwen2VLImageProcessorPil(size={"shortest_edge": 200 * 200, "longest_edge": 400 * 400})(image, return_tensors="np")
    ours = of_image(image, 200 * 200, 400 * 400)
    assert ours.grid == tuple(theirs["image_grid_thw"][0])
    np.testing.assert_allclose(ours.patches, theirs["pixel_values"], atol=2e-5)


def test_a_clip_pairs_its_frames(clip: Path) -> None:
    frames = [photo("coffee").resize((112, 84)), photo("rocket").resize((112, 84))]
    pixels = of_clip([*frames, frames[0]], 2.0, *SMALL)
    assert pixels.grid == (2, 6, 8) and pixels.seconds_per_grid == 1.0 and pixels.tokens == 24
    single = [of_image(frame, *SMALL).patches.reshape(48, 3, 2, 14, 14) for frame in frames]
    pair, last = pixels.patches.reshape(2, 48, 3, 2, 14, 14)
    np.testing.assert_array_equal(pair[:, :, 0], single[0][:, :, 0])
    np.testing.assert_array_equal(pair[:, :, 1], single[1][:, :, 1])
    np.testing.assert_array_equal(last, single[0])
    assert chosen_frames(17, 5) == [0, 4, 8, 12, 16] and chosen_frames(3, 8) == [0, 1, 2]
    assert clip_pixels(clip, 8, 112 * 112).grid[0] == 4


@pytest.mark.parametrize("size", [(1, 1), (30, 4000), (5000, 3000), (640, 480)])
def test_sizes_are_whole_tokens_within_the_limits(size: tuple[int, int]) -> None:
    width, height = fitting_size(size, 56 * 56, 448 * 448)
    assert width % 28 == height % 28 == 0 and 56 * 56 <= width * height <= 448 * 448
    with pytest.raises(ValueError, match="narrower than 1:200"):
        fitting_size((5, 1001), 56 * 56, 448 * 448)


def reference(path: Path, tokenizer: Any) -> Any:
    """The same weights put into transformers' model by hand."""
    from musubi_backend.encoders.qwen_vl_config import config_arguments, own_name
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tensors = {own_name(name): tensor for name, tensor in load(path).items()}
    arguments = config_arguments({str(name): tuple(t.shape) for name, t in tensors.items()}, GEOMETRY, "")
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**arguments, **ids, attn_implementation="eager"))
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def test_answers_are_those_of_transformers(random_model: Path) -> None:
    """Prompt, positions of images, batching with padding and fp8: against a plain forward pass of transformers' model."""
    ours = QwenVL.load(random_model, CPU, torch.float32)
    theirs = reference(random_model, ours.tokenizer)
    images = [of_image(photo(name), *SMALL) for name in ("coffee", "astronaut")]
    images.append(of_image(photo("chelsea").resize((60, 120)), *SMALL))
    batch = ours.describe(images, "What is it?", 6)
    for pixels, answer in zip(images, batch, strict=True):
        assert answer == ours.describe([pixels], "What is it?", 6)[0], "padding must change nothing"
        ids = torch.tensor([ours.prompt_ids(pixels, "What is it?")])
        kinds = (ids == theirs.config.image_token_id).int()
        for _ in range(6):
            with torch.no_grad():
                logits = theirs(
                    input_ids=ids,
                    mm_token_type_ids=kinds,
                    pixel_values=torch.from_numpy(pixels.patches),
                    image_grid_thw=torch.tensor([pixels.grid]),
                    use_cache=False,
                ).logits[0, -1]
            ids = torch.cat([ids, logits.argmax().reshape(1, 1)], dim=1)
            kinds = torch.cat([kinds, torch.zeros(1, 1, dtype=torch.int32)], dim=1)
            if ids[0, -1] in ours._turn_ends():
                break
        generated = ids[0, len(ours.prompt_ids(pixels, "What is it?")) :].tolist()
        assert ours.tokenizer.decode(generated, skip_special_tokens=True).strip() == answer


PUBLISHED = {  # huggingface.co/Qwen/Qwen2.5-VL-*-Instruct, config.json
    "3B": {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
           "num_attention_heads": 16, "num_key_value_heads": 2},
    "7B": {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
           "num_attention_heads": 28, "num_key_value_heads": 4},
}  # fmt: skip


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_are_reported_from_shapes(size: str) -> None:
    """Names as in ComfyUI's files, shapes as transformers makes them of the published configurations."""
    from accelerate import init_empty_weights
    from musubi_backend.encoders.qwen_vl_config import Geometry, config_arguments, own_name
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    published = PUBLISHED[size]
    vision = {"hidden_size": 1280, "out_hidden_size": published["hidden_size"], "tokens_per_second": 2}
    config = Qwen2_5_VLConfig(text_config=published, vision_config=vision)
    with init_empty_weights():
        shapes = {name: tuple(tensor.shape) for name, tensor in Qwen2_5_VLForConditionalGeneration(config).state_dict().items()}
    if size == "3B":
        del shapes["lm_head.weight"]
    stored = {name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): s for name, s in shapes.items()}
    found = config_arguments({str(own_name(name)): shape for name, shape in stored.items()}, Geometry(), size)
    assert {key: found["text_config"][key] for key in published} == published
    assert found["tie_word_embeddings"] == (size == "3B")
    ours = Qwen2_5_VLConfig(**found)
    for key in ("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size", "window_size"):
        assert getattr(ours.vision_config, key) == getattr(config.vision_config, key), key
    assert list(ours.vision_config.fullatt_block_indexes) == list(config.vision_config.fullatt_block_indexes)
    rope = ours.text_config.rope_parameters
    assert (rope["rope_theta"], rope["mrope_section"]) == (1e6, [16, 24, 24])


def hidden(model: QwenVL, pixels: Pixels) -> torch.Tensor:
    inputs = model._inputs([pixels], [model.prompt_ids(pixels, "What?")])
    with torch.no_grad():
        logits: torch.Tensor = model.model(**inputs).logits
    return logits.float()


def test_every_layout_gives_the_same_model(random_model: Path, tmp_path: Path) -> None:
    """transformers' folder in one and in two files, and names with a prefix."""
    pixels = of_image(photo("coffee"), *SMALL)
    loaded = QwenVL.load(random_model, CPU, torch.float32)
    expected = hidden(loaded, pixels)
    tokenizer = str(random_model.parent / "qwen25_tokenizer")
    for name, shard in (("whole", "1GB"), ("split", "200KB")):
        reference(random_model, loaded.tokenizer).save_pretrained(tmp_path / name, max_shard_size=shard)
        assert (len(list((tmp_path / name).glob("*.safetensors"))) > 1) == (name == "split")
        torch.testing.assert_close(hidden(QwenVL.load(tmp_path / name, CPU, torch.float32, tokenizer=tokenizer), pixels), expected)
    renamed = {f"model.language_model.{n[6:]}" if n.startswith("model.") else f"model.{n}" if n.startswith("visual.") else n: t
               for n, t in load(random_model).items()}  # fmt: skip
    save_atomic(renamed, tmp_path / "single.safetensors", {GEOMETRY_KEY: json.dumps(asdict(GEOMETRY))})
    torch.testing.assert_close(
        hidden(QwenVL.load(tmp_path / "single.safetensors", CPU, torch.float32, tokenizer=tokenizer), pixels), expected
    )


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
def test_scaled_fp8_files_stay_in_fp8(name: str, random_model: Path, tmp_path: Path) -> None:
    """ComfyUI's fp8_scaled files, one scale per weight: the same as the weights multiplied out."""
    scaled, plain = load(random_model), load(random_model)
    for weight in [n for n, t in scaled.items() if n.startswith("model.layers") and t.ndim == 2]:
        scale = scaled[weight].abs().amax() / 448
        scaled[weight] = (scaled[weight] / scale).to(torch.float8_e4m3fn)
        plain[weight] = scaled[weight].float() * scale
        scaled[f"{weight.removesuffix('weight')}{name}"] = scale
        scaled[f"{weight.removesuffix('weight')}scale_input"] = torch.ones(())
    scaled["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    models = []
    for file, tensors in (("scaled.safetensors", scaled), ("plain.safetensors", plain)):
        save_atomic(tensors, tmp_path / file, {GEOMETRY_KEY: json.dumps(asdict(GEOMETRY))})
        models.append(QwenVL.load(tmp_path / file, CPU, torch.float32, tokenizer=str(random_model.parent / "qwen25_tokenizer")))
    layers = [module for module in models[0].model.modules() if isinstance(module, Fp8Linear)]
    assert len(layers) == 14 and all(layer.weight.dtype == torch.float8_e4m3fn for layer in layers)
    pixels = of_image(photo("coffee"), *SMALL)
    torch.testing.assert_close(hidden(models[0], pixels), hidden(models[1], pixels), rtol=1e-3, atol=1e-3)


def test_fp8_vl_keeps_linear_layers_in_fp8(random_model: Path) -> None:
    exact = QwenVL.load(random_model, CPU, torch.float32).model
    eight = QwenVL.load(random_model, CPU, torch.float32, fp8=True).model
    layers = {name: module for name, module in exact.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"}
    assert len(layers) == 26
    for name, layer in layers.items():
        small = eight.get_submodule(name)
        assert isinstance(small, Fp8Linear) and small.weight.element_size() == 1
        x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(1))
        expected, found = layer(x), small(x)
        assert (found - expected).norm() / expected.norm() < 0.04, "three bits of mantissa, rounded"
    assert type(eight.lm_head) is torch.nn.Linear


def test_wrong_files_are_rejected_by_name(vl_model: Path, tmp_path: Path) -> None:
    tokenizer = str(vl_model.parent / "qwen25_tokenizer")
    other = {"shared.weight": torch.ones(2, 2), "encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2)}
    save_atomic(other, tmp_path / "t5.safetensors")
    with pytest.raises(UserError, match=r"is a T5 text encoder; --model_path expects a Qwen2.5-VL"):
        QwenVL.load(tmp_path / "t5.safetensors", CPU, torch.bfloat16)
    metadata = read_header(vl_model).metadata
    whole = load(vl_model)
    for lost, message in (
        ("lm_head.weight", "holds no output layer"),
        ("visual.blocks.1.mlp.gate_proj.bias", "1 missing: model.visual.blocks.1.mlp.gate_proj.bias"),
    ):
        save_atomic({name: tensor for name, tensor in whole.items() if name != lost}, tmp_path / "cut.safetensors", metadata)
        with pytest.raises(UserError, match=message):
            QwenVL.load(tmp_path / "cut.safetensors", CPU, torch.bfloat16, tokenizer=tokenizer)
    assert str(recognise(vl_model)).startswith("Qwen2.5-VL")


def test_a_missing_tokenizer_is_reported_with_its_place(vl_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    models = tmp_path / "ComfyUI" / "models" / "text_encoders"
    models.mkdir(parents=True)
    file = models / "qwen.safetensors"
    shutil.copy(vl_model, file)
    with pytest.raises(UserError, match=r"no Qwen2.5-VL tokenizer for .*qwen25_tokenizer"):
        QwenVL.load(file, CPU, torch.bfloat16)
    comfy = tmp_path / "ComfyUI" / "comfy" / "text_encoders" / "qwen25_tokenizer"
    shutil.copytree(vl_model.parent / "qwen25_tokenizer", comfy)
    assert QwenVL.load(file, CPU, torch.bfloat16).tokenizer is not None, "ComfyUI's own copy, above its models folder"
    moved = shutil.move(file, tmp_path / "qwen.safetensors")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "ComfyUI"))
    assert QwenVL.load(moved, CPU, torch.bfloat16).tokenizer is not None, "the ComfyUI that the nodes name"
    vocabulary = json.loads((comfy / "vocab.json").read_text(encoding="utf-8"))
    whole = (comfy / "vocab.json").read_bytes()
    larger = {**vocabulary, **{f"word{number}": 1000 + number for number in range(100)}}
    (comfy / "vocab.json").write_text(json.dumps(larger), encoding="utf-8")
    with pytest.raises(UserError, match="they do not belong together"):
        QwenVL.load(moved, CPU, torch.bfloat16)
    (comfy / "vocab.json").write_bytes(whole)
    settings = json.loads((comfy / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["added_tokens_decoder"] = {k: v for k, v in settings["added_tokens_decoder"].items() if "vision" not in v["content"]}
    (comfy / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(UserError, match=r"is not Qwen2.5-VL's: it does not know <\|vision_start\|>"):
        QwenVL.load(moved, CPU, torch.bfloat16)


@pytest.fixture
def describer(vl_model: Path) -> Describer:
    return Describer(DescriberSettings(str(vl_model), device="cpu", max_size=112, max_new_tokens=16, batch_size=4))


def test_a_batch_that_needs_too_much_memory_is_halved(describer: Describer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's limit is played by a wrapper around the real model."""
    real, sizes, limit = describer.model.describe, [], [2]

    def limited(media: list[Pixels], *rest: Any) -> list[str]:
        sizes.append(len(media))
        if len(media) > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(media, *rest)

    monkeypatch.setattr(describer.model, "describe", limited)
    media = [of_image(photo(name), *SMALL) for name in ("coffee", "rocket", "coffee", "rocket")]
    dark = ["a dark picture in warm colours", "a dark picture in cold colours"]
    assert describer.answers(media) == dark * 2
    assert sizes == [4, 2, 2] and describer.batch_size == 2
    limit[0] = 0
    assert describer.answers(media[:1]) == [Unanswered("out of memory: use a smaller --max_size, fewer --video_frames, or --fp8_vl")]


def test_flags_are_those_of_the_contract(shared: Path, own_flags: Callable[[str], dict[str, Any]]) -> None:
    scripts = json.loads((shared / "contracts" / "musubi_cli.json").read_text(encoding="utf-8"))["scripts"]
    theirs = {flag["dest"]: flag for flag in scripts["caption_images_by_qwen_vl"]["flags"]}
    ours = own_flags("caption_images_by_qwen_vl")
    assert {name for name, option in ours.items() if not option.own} == set(theirs)
    for name, flag in theirs.items():
        option = ours[name]
        assert (option.required, option.choices and list(option.choices)) == (flag["required"], flag["choices"]), name
        assert name == "prompt" or (option.default == flag["default"]), "the words of the default prompt are our own"


@pytest.fixture
def own_flags() -> Callable[[str], dict[str, Any]]:
    from musubi_backend.options.registry import options_for

    return options_for
