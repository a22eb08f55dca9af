"""Llama, CLIP-L and SigLIP against transformers' own whole models, in every layout their files come in; their tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from musubi_backend.demo import encoders as demo
from musubi_backend.encoders import offloaded
from musubi_backend.encoders.clip_text import ClipText
from musubi_backend.encoders.clip_text import _config as clip_config
from musubi_backend.encoders.llama import VIDEO_INSTRUCTION, LlamaEncoder
from musubi_backend.encoders.llama import _config as llama_config
from musubi_backend.encoders.model_files import ModelFiles
from musubi_backend.encoders.siglip import Siglip
from musubi_backend.encoders.siglip import _config as siglip_config
from musubi_backend.encoders.token_files import INSIDE, from_json
from musubi_backend.errors import UserError
from musubi_backend.weights.loader import Weights
from musubi_backend.weights.safetensors_file import Header, TensorInfo
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")
CAPTIONS = ["a cat", "a red car driving along the coast at sunset, aerial view", ""]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo encoders in float32, so that casts are no part of the comparison."""
    folder = tmp_path_factory.mktemp("encoders")
    paths = {}
    for name, make in (("llama", demo.llama), ("clip", demo.clip_l), ("siglip", demo.siglip)):
        tensors, metadata = make(0)
        paths[name] = folder / f"{name}.safetensors"
        save_file({key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}, paths[name], metadata)
    return paths


@pytest.fixture(scope="module")
def whole_llama(files: dict[str, Path]) -> Any:
    """transformers' model with all its layers."""
    config = transformers.LlamaConfig(
        vocab_size=demo.VOCABULARY, hidden_size=demo.LLM_WIDTH, intermediate_size=2 * demo.LLM_WIDTH, num_hidden_layers=demo.LLM_LAYERS,
        num_attention_heads=demo.LLM_WIDTH // demo.LLM_HEAD_DIM, num_key_value_heads=demo.LLM_KEY_HEADS, rms_norm_eps=1e-5,
        rope_theta=500000.0,
    )  # fmt: skip
    model = transformers.LlamaModel(config).eval()
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(files["llama"]).items() if name != INSIDE}
    model.load_state_dict(tensors, strict=True)
    return model


def _template(caption: str, instruction: str = VIDEO_INSTRUCTION) -> tuple[str, str]:
    """(what the model reads, its part before the caption)"""
    before = f"<|start_header_id|>system<|end_header_id|>\n\n{instruction}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    return f"{before}{caption}<|eot_id|>", before


@pytest.mark.parametrize("instruction", [None, "Describe the image:"])
def test_llama_gives_the_hidden_states_two_layers_before_the_end(files: dict[str, Path], whole_llama: Any, instruction: str | None) -> None:
    encoder = LlamaEncoder.load(files["llama"], CPU, torch.float32)
    features = encoder.encode(CAPTIONS, instruction)
    for caption, found in zip(CAPTIONS, features, strict=True):
        text, before = _template(caption, instruction or VIDEO_INSTRUCTION)
        ids, cut = encoder.tokenizer.encode(text, 1000), len(encoder.tokenizer.encode(before, 1000))
        assert ids[0] == encoder.tokenizer.token("<|begin_of_text|>")
        with torch.no_grad():
            states = whole_llama(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-3][0]
        torch.testing.assert_close(found, states[cut:], **CLOSE)


def test_a_long_caption_is_cut_at_256_tokens(files: dict[str, Path]) -> None:
    encoder = LlamaEncoder.load(files["llama"], CPU, torch.float32)
    assert len(encoder.encode(["cat " * 400])[0]) == 256


def _nested(tensors: Tensors) -> Tensors:
    """A whole LLaVA: its language model, and other parts that are left out."""
    others = {"vision_tower.patch.weight": torch.zeros(2), "language_model.lm_head.weight": torch.zeros(2, 2)}
    return {f"language_model.{name}": tensor for name, tensor in tensors.items() if name != INSIDE} | others


LAYOUTS: dict[str, Callable[[Tensors], Tensors]] = {
    "with an output layer": lambda tensors: {**tensors, "lm_head.weight": torch.zeros(2, 2)},
    "without prefix": lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()},
    "LLaVA": _nested,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_llama_in_other_layouts(files: dict[str, Path], tmp_path: Path, layout: str) -> None:
    tensors, metadata = LAYOUTS[layout](load_file(files["llama"])), demo.llama(0)[1]
    path = tmp_path / "llava_llama3.safetensors"
    save_file(tensors, path, metadata)
    (tmp_path / "llama_tokenizer").mkdir()
    (tmp_path / "llama_tokenizer" / "tokenizer.json").write_bytes(load_file(files["llama"])[INSIDE].numpy().tobytes())
    expected = LlamaEncoder.load(files["llama"], CPU, torch.float32).encode(["a cat"])[0]
    torch.testing.assert_close(LlamaEncoder.load(path, CPU, torch.float32).encode(["a cat"])[0], expected, **CLOSE)


def test_llama_from_a_folder_of_several_parts(files: dict[str, Path], tmp_path: Path) -> None:
    """Sizes come from config.json, the tokenizer from the folder next to it, as in Hugging Face's pipelines."""
    tensors = load_file(files["llama"])
    folder, names = tmp_path / "text_encoder", sorted(name for name in tensors if name != INSIDE)
    folder.mkdir()
    for part, chosen in enumerate((names[:7], names[7:]), start=1):
        save_file({name: tensors[name] for name in chosen}, folder / f"model-{part:05d}-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps({"head_dim": demo.LLM_HEAD_DIM, "rope_theta": 500000.0, "rms_norm_eps": 1e-5}))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(tensors[INSIDE].numpy().tobytes())
    expected = LlamaEncoder.load(files["llama"], CPU, torch.float32).encode(["a cat"])[0]
    for path in (folder, tmp_path):
        torch.testing.assert_close(LlamaEncoder.load(path, CPU, torch.float32).encode(["a cat"])[0], expected, **CLOSE)


@pytest.mark.parametrize("fp8", [False, True])
def test_llama_whose_layers_come_in_turn_gives_the_same_bits(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, fp8: bool) -> None:
    """With one buffer, so that each layer takes the place of the one before; and again, from the last back to the first."""
    monkeypatch.setattr(offloaded, "_RING", 1)
    whole = LlamaEncoder.load(files["llama"], CPU, torch.float32, fp8=fp8)
    encoder = LlamaEncoder.load(files["llama"], CPU, torch.float32, fp8=fp8, offload=True)
    buffer, places = encoder.model.layers[0].stream.buffers[0].data_ptr(), []
    for layer in encoder.model.layers:
        part = layer.self_attn.q_proj
        part.register_forward_hook(lambda part, *_: places.append(part.weight.data_ptr()))
    for captions in (CAPTIONS, CAPTIONS[:1]):
        for found, expected in zip(encoder.encode(captions), whole.encode(captions), strict=True):
            assert torch.equal(found, expected)
    assert places == [buffer] * 2 * len(encoder.model.layers), "each in the buffer while it ran"


@pytest.mark.parametrize(("free", "waits"), [(10**9, False), (10**8, True)])
def test_an_encoder_that_does_not_fit_on_the_gpu_waits_in_system_ram(monkeypatch: pytest.MonkeyPatch, free: int, waits: bool) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 2 * free))
    with torch.device("meta"):
        model = torch.nn.Linear(10**4, 10**4)
    assert offloaded.chosen(model, torch.device("cuda"), torch.bfloat16, False) is waits
    assert offloaded.chosen(model, CPU, torch.bfloat16, True)


def test_llama_held_in_eight_bits(files: dict[str, Path]) -> None:
    encoder = LlamaEncoder.load(files["llama"], CPU, torch.float32, fp8=True)
    assert encoder.model.layers[0].mlp.up_proj.weight.dtype == torch.float8_e4m3fn
    assert encoder.model.embed_tokens.weight.dtype == torch.float32
    whole = LlamaEncoder.load(files["llama"], CPU, torch.float32).encode(["a cat"])[0]
    difference = (encoder.encode(["a cat"])[0] - whole).norm() / whole.norm()
    assert 0 < difference < 0.1, "three bits of mantissa"


def test_llama_from_comfyui_s_scaled_fp8_file(files: dict[str, Path], tmp_path: Path) -> None:
    """llava_llama3_fp8_scaled.safetensors: fp8 matrices with one scale each, and a marker."""
    tensors = load_file(files["llama"])
    for name in [name for name in tensors if name.endswith(("_proj.weight",))]:
        scale = tensors[name].abs().max() / 448
        tensors[name.replace(".weight", ".scale_weight")] = scale.reshape(1)
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
    save_file({**tensors, "scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}, tmp_path / "llama.safetensors", demo.llama(0)[1])
    whole = LlamaEncoder.load(files["llama"], CPU, torch.float32).encode(["a cat"])[0]
    dense, held = (LlamaEncoder.load(tmp_path / "llama.safetensors", CPU, torch.float32, fp8=fp8) for fp8 in (False, True))
    assert dense.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    assert held.model.layers[0].mlp.up_proj.weight.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(held.encode(["a cat"])[0], dense.encode(["a cat"])[0], **CLOSE)
    assert 0 < (dense.encode(["a cat"])[0] - whole).norm() / whole.norm() < 0.1


def test_the_file_s_dtype_is_used_unless_reported_otherwise(files: dict[str, Path], tmp_path: Path) -> None:
    tensors, metadata = demo.llama(0)
    save_file(
        {name: one.bfloat16() if one.is_floating_point() else one for name, one in tensors.items()},
        tmp_path / "llama.safetensors",
        metadata,
    )
    assert LlamaEncoder.load(tmp_path / "llama.safetensors", CPU).encode(["a"])[0].dtype == torch.bfloat16
    assert LlamaEncoder.load(tmp_path / "llama.safetensors", CPU, torch.float16).encode(["a"])[0].dtype == torch.float16


@pytest.fixture(scope="module")
def whole_clip(files: dict[str, Path]) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=demo.VOCABULARY, hidden_size=demo.CLIP_WIDTH, intermediate_size=2 * demo.CLIP_WIDTH, num_hidden_layers=demo.LAYERS,
        num_attention_heads=4, max_position_embeddings=77, eos_token_id=2, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    model = transformers.CLIPTextModel(config).eval()
    prefix = "text_model." if any(name.startswith("text_model.") for name in model.state_dict()) else ""
    tensors = load_file(files["clip"])
    tensors.pop(INSIDE)
    model.load_state_dict({prefix + name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}, strict=True)
    return model


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_clip_gives_the_pooled_feature_of_a_row_padded_to_77(files: dict[str, Path], whole_clip: Any, prefix: str, tmp_path: Path) -> None:
    """Files written by different versions of transformers carry a prefix or not."""
    tensors = {name.replace("text_model.", prefix): tensor for name, tensor in load_file(files["clip"]).items()}
    save_file({**tensors, "logit_scale": torch.zeros(1)}, tmp_path / "clip_l.safetensors", demo.clip_l(0)[1])
    encoder = ClipText.load(tmp_path / "clip_l.safetensors", CPU, torch.float32)
    for caption, (pooled, count) in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        ids = encoder.tokenizer.encode(caption, 77)
        assert len(ids) == count
        with torch.no_grad():
            expected = whole_clip(input_ids=torch.tensor([ids + [ids[-1]] * (77 - len(ids))])).pooler_output[0]
        torch.testing.assert_close(pooled, expected, **CLOSE)


def test_clip_text_of_a_whole_clip(files: dict[str, Path], tmp_path: Path) -> None:
    """openai/clip-vit-large-patch14 holds the image encoder, too."""
    tensors = load_file(files["clip"])
    tokenizer = tensors.pop(INSIDE)
    others = {name.replace("text_model", "vision_model"): torch.zeros(3, 3) for name in tensors if ".layers." in name}
    others |= {"vision_model.embeddings.class_embedding": torch.zeros(3), "logit_scale": torch.zeros(1)}
    (tmp_path / "clip").mkdir()
    save_file({**tensors, **others}, tmp_path / "clip" / "model.safetensors", demo.clip_l(0)[1])
    (tmp_path / "clip" / "tokenizer.json").write_bytes(tokenizer.numpy().tobytes())
    whole = ClipText.load(files["clip"], CPU, torch.float32).encode(["a cat"])[0][0]
    torch.testing.assert_close(ClipText.load(tmp_path / "clip", CPU, torch.float32).encode(["a cat"])[0][0], whole, **CLOSE)


def test_a_long_caption_is_cut_at_77_tokens_and_ends_as_it_should(files: dict[str, Path]) -> None:
    encoder = ClipText.load(files["clip"], CPU, torch.float32)
    assert encoder.encode(["cat " * 400])[0][1] == 77
    assert encoder.tokenizer.encode("cat " * 400, 77)[-1] == encoder.tokenizer.token("<|endoftext|>")


def test_clip_reads_comfyui_s_tokenizer(
    files: dict[str, Path], comfyui_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """49406 begins and 49407 ends a text in the published vocabulary; "a photo of a cat" is 320 1125 539 320 2368."""
    tensors = load_file(files["clip"])
    tensors.pop(INSIDE)
    tensors["text_model.embeddings.token_embedding.weight"] = torch.zeros(49408, demo.CLIP_WIDTH)
    save_file(tensors, tmp_path / "clip_l.safetensors", demo.clip_l(0)[1])
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui_path))
    tokenizer = ClipText.load(tmp_path / "clip_l.safetensors", CPU, torch.float32).tokenizer
    assert tokenizer.encode("A photo of a cat", 77) == [49406, 320, 1125, 539, 320, 2368, 49407]


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_siglip_equals_transformers_model_behind_its_image_processor(
    files: dict[str, Path], prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = int(demo.IMAGE_TOKENS**0.5) * demo.PATCH
    config = transformers.SiglipVisionConfig(
        hidden_size=demo.IMAGE_WIDTH, intermediate_size=2 * demo.IMAGE_WIDTH, num_hidden_layers=demo.LAYERS, num_attention_heads=4,
        image_size=side, patch_size=demo.PATCH, vision_use_head=False, hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    model = transformers.SiglipVisionModel(config).eval()
    own = "vision_model." if any(name.startswith("vision_model.") for name in model.state_dict()) else ""
    tensors = {name.removeprefix("vision_model."): tensor for name, tensor in load_file(files["siglip"]).items()}
    model.load_state_dict({own + name: tensor for name, tensor in tensors.items()}, strict=True)
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    # the processor as FramePack sets it up: bicubic, to values from -1 to 1
    square = transformers.image_transforms.resize(image, (side, side), resample=3).astype(np.float32)
    with torch.no_grad():
        expected = model(pixel_values=torch.from_numpy((square / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]).last_hidden_state

    save_file({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "sigclip.safetensors", demo.siglip(0)[1])
    found = Siglip.load(tmp_path / "sigclip.safetensors", CPU, torch.float32).encode([image])
    torch.testing.assert_close(found, expected, **CLOSE)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    halves = {prefix + name: tensor.half() for name, tensor in tensors.items()}
    save_file(halves, tmp_path / "half.safetensors", demo.siglip(0)[1])
    half = Siglip.load(tmp_path / "half.safetensors", CPU)
    assert half.model.dtype == torch.float32, "this CPU would imitate float16"
    found = Siglip.load(tmp_path / "half.safetensors", CPU, torch.float32).encode([image])
    assert torch.equal(half.encode([image]), found.half())


def test_a_missing_tokenizer_is_asked_for_by_name_and_place(files: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(files["llama"])
    tensors.pop(INSIDE)
    save_file(tensors, tmp_path / "llava_llama3_fp16.safetensors", demo.llama(0)[1])
    with pytest.raises(UserError, match=r"no Llama 3 tokenizer for .*llava_llama3_fp16.*Put tokenizer\.json of .* into .*llama_tokenizer"):
        LlamaEncoder.load(tmp_path / "llava_llama3_fp16.safetensors", CPU, torch.float32)


def test_a_tokenizer_of_another_model_is_rejected(files: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(files["llama"])
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:300].clone()
    save_file(tensors, tmp_path / "llama.safetensors", demo.llama(0)[1])
    with pytest.raises(UserError, match=r"has 512 tokens, but the text encoder .* knows 300"):
        LlamaEncoder.load(tmp_path / "llama.safetensors", CPU, torch.float32)


def test_a_damaged_tokenizer_is_named() -> None:
    with pytest.raises(UserError, match=r"here is not a tokenizer\.json"):
        from_json(b"{}", "here")


def test_other_models_are_rejected_by_name(files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="is a CLIP-L text encoder; --text_encoder1 expects a Llama"):
        LlamaEncoder.load(files["clip"], CPU)
    with pytest.raises(UserError, match=r"is a Llama .*; --text_encoder2 expects a CLIP-L"):
        ClipText.load(files["llama"], CPU)


def _header(shapes: dict[str, tuple[int, ...]]) -> Weights:
    infos = {name: TensorInfo("BF16", shape, 0, 0) for name, shape in shapes.items()}
    return Weights(Path("published.safetensors"), Header(infos, {}), ())


def test_sizes_of_the_published_encoders_are_read_from_their_shapes() -> None:
    """Meta's Llama 3 8B with LLaVA's vocabulary, OpenAI's CLIP-L, Google's SigLIP so400m at 384 pixels."""
    files = ModelFiles(Path("published.safetensors"), {}, {}, "published")
    layers: dict[str, tuple[int, ...]] = {f"model.layers.{layer}.self_attn.q_proj.weight": (4096, 4096) for layer in range(32)}
    first = {"self_attn.k_proj.weight": (1024, 4096), "mlp.gate_proj.weight": (14336, 4096)}
    layers |= {"model.embed_tokens.weight": (128320, 4096)} | {f"model.layers.0.{name}": shape for name, shape in first.items()}
    config = llama_config(files, _header(layers))
    assert (config.hidden_size, config.intermediate_size, config.vocab_size) == (4096, 14336, 128320)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (30, 32, 8, 128)

    def layered(count: int, first: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        return {f"encoder.layers.{layer}.layer_norm1.weight": (1,) for layer in range(count)} | {"encoder.layers.0.mlp.fc1.weight": first}

    embeddings = {"embeddings.token_embedding.weight": (49408, 768), "embeddings.position_embedding.weight": (77, 768)}
    clip = clip_config(files, _header({**layered(12, (3072, 768)), **embeddings}))
    assert (clip.hidden_size, clip.intermediate_size, clip.num_hidden_layers, clip.num_attention_heads) == (768, 3072, 12, 12)
    assert clip.max_position_embeddings == 77

    embeddings = {"embeddings.patch_embedding.weight": (1152, 3, 14, 14), "embeddings.position_embedding.weight": (729, 1152)}
    siglip = siglip_config(files, _header({**layered(27, (4304, 1152)), **embeddings}))
    assert (siglip.hidden_size, siglip.intermediate_size, siglip.num_hidden_layers, siglip.num_attention_heads) == (1152, 4304, 27, 16)
    assert (siglip.image_size, siglip.patch_size) == (384, 14)
