"""Stand-ins of the published model files: real headers (names, shapes, dtypes) over a hole, so that 28 GB take no disk.

Names of transformers are those that musubi-tuner's own small models have (`golden/`), with as many layers as the
published ones; names of the others and all shapes are those of transformers' and diffusers' classes at the published sizes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from musubi_backend.architectures.framepack.geometry import FramePackGeometry
from musubi_backend.architectures.framepack.model import FramePackTransformer
from musubi_backend.architectures.hunyuan_video.geometry import HunyuanGeometry
from musubi_backend.architectures.hunyuan_video.model import HunyuanTransformer
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.demo_vae import DIM, RES_BLOCKS, shapes_of
from musubi_backend.architectures.wan.geometry import WanGeometry
from musubi_backend.architectures.wan.model import WanTransformer
from musubi_backend.demo.models import write_models
from musubi_backend.encoders.token_files import INSIDE
from musubi_backend.encoders.wan_vae import diffusers_key
from musubi_backend.weights.safetensors_file import DTYPE_BITS, layout_of, read_header

Shapes = dict[str, tuple[int, ...]]
IMAGE_DIM = 1280  # of Wan's CLIP
SPIECE = "spiece_model"
_WIDER = ("encoder.downsamples.3.shortcut.weight", "encoder.downsamples.3.shortcut.bias")


def write(path: Path, shapes: Shapes, dtype: str, real: Mapping[str, bytes] | None = None, scaled: Collection[str] = ()) -> None:
    """A file of tensors of one dtype, all a hole but for `real`: bytes that are read before any weight (a tokenizer).

    scaled: the weights that are fp8 with a scale, as ComfyUI has them.
    """
    real = real or {}
    entries = {name: ("F8_E4M3" if name in scaled else dtype, shape) for name, shape in shapes.items()}
    entries |= {f"{name.removesuffix('weight')}scale_weight": ("F32", ()) for name in scaled}
    entries |= {name: ("U8", (len(data),)) for name, data in real.items()}
    names, header = layout_of(entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    position = len(header)
    with path.open("wb") as file:
        file.write(header)
        for name in names:
            if name in real:
                file.seek(position)
                file.write(real[name])
            position += prod(entries[name][1]) * DTYPE_BITS[entries[name][0]] // 8
        file.truncate(position)


def _shapes(model: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _recorded(shapes: Shapes, recording: Path, lists: Mapping[str, int], prefix: str = "") -> Shapes:
    """`shapes` if their names are those of a recorded small model with `lists` (name of a list of layers -> how many) filled up."""
    names = set()
    for name in read_header(recording).tensors:
        name = name.removeprefix(prefix)
        match = next((found for one in lists if (found := re.match(rf"({re.escape(one)})\.\d+\.(.*)", name))), None)
        names |= {f"{match[1]}.{index}.{match[2]}" for index in range(lists[match[1]])} if match else {name}
    assert set(shapes) == names, sorted(set(shapes) ^ names)[:8]
    return shapes


def wan(shared: Path, task_name: str) -> Shapes:
    """A Wan transformer of the published size."""
    task = CARD.task(task_name)
    geometry = WanGeometry(
        task.dim, task.ffn_dim, task.num_heads, task.num_layers, task.in_dim, image_dim=IMAGE_DIM if task.image_encoder else None
    )
    recording = "wan21_i2v" if task.image_encoder else "wan22_i2v" if task.in_dim == 36 else "wan21_t2v"
    with torch.device("meta"):
        shapes = _shapes(WanTransformer(geometry))
    return _recorded(shapes, shared / "golden" / "dit" / f"{recording}.dit.safetensors", {"blocks": task.num_layers})


def hunyuan_video(shared: Path) -> Shapes:
    with torch.device("meta"):
        shapes = _shapes(HunyuanTransformer(HunyuanGeometry(3072, 24, 12288, 20, 40)))
    lists = {"double_blocks": 20, "single_blocks": 40, "txt_in.individual_token_refiner.blocks": 2}
    return _recorded(shapes, shared / "golden" / "dit" / "hv_t2v.dit.safetensors", lists)


def framepack(shared: Path) -> Shapes:
    with torch.device("meta"):
        shapes = _shapes(FramePackTransformer(FramePackGeometry(3072, 24, 12288, 20, 40)))
    lists = {"transformer_blocks": 20, "single_transformer_blocks": 40, "context_embedder.token_refiner.refiner_blocks": 2}
    return _recorded(shapes, shared / "golden" / "dit" / "framepack.dit.safetensors", lists)


def wan_vae() -> Shapes:
    """The original names (those of the demo VAE, which has as many layers but gets wider at another one) with the shapes of diffusers'
    class, whose defaults are the published model."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        shapes = _shapes(AutoencoderKLWan())
    names = {name: diffusers_key(name, RES_BLOCKS) for name in (*shapes_of(DIM), *_WIDER)}
    found = {name: shapes[own] for name, own in names.items() if own in shapes}
    assert len(found) == len(shapes)
    return found


def hunyuan_vae(shared: Path) -> Shapes:
    from diffusers import AutoencoderKLHunyuanVideo

    with torch.device("meta"):
        shapes = _shapes(AutoencoderKLHunyuanVideo())
    recorded = set(read_header(shared / "golden" / "vae_te" / "hv_vae.safetensors").tensors)
    assert recorded <= set(shapes)
    return shapes


def umt5() -> Shapes:
    """As ComfyUI's file has it: transformers' names, one embedding."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
    with torch.device("meta"):
        return _without(_shapes(UMT5EncoderModel(config)), "encoder.embed_tokens.")


def llama() -> Shapes:
    """LLaVA-Llama3's language model."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=128320, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
    )
    with torch.device("meta"):
        return {f"model.{name}": shape for name, shape in _shapes(LlamaModel(config)).items()}


def clip_l() -> Shapes:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    with torch.device("meta"):
        return _named("text_model.", _shapes(CLIPTextModel(config)))


def clip_vision_h() -> Shapes:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14)
    with torch.device("meta"):
        return _named("vision_model.", _shapes(CLIPVisionModel(config)))


def siglip() -> Shapes:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=384, patch_size=14
    )
    with torch.device("meta"):
        return _named("vision_model.", _shapes(SiglipVisionModel(config)))


def qwen_vl() -> tuple[Shapes, list[str]]:
    """Qwen2.5-VL 7B under ComfyUI's names, and which of its weights are in fp8."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    text |= {"num_attention_heads": 28, "num_key_value_heads": 4}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False))
    shapes = {name.replace("model.visual.", "visual.").replace(".language_model", ""): size for name, size in _shapes(model).items()}
    return shapes, [name for name in shapes if re.match(r"model\.layers\..*_proj\.weight", name)]


def _without(shapes: Shapes, *beginnings: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.startswith(beginnings)}


def _named(prefix: str, shapes: Shapes) -> Shapes:
    """With the prefix that the published file has; versions of transformers differ in it."""
    return {prefix + name.removeprefix(prefix): shape for name, shape in shapes.items() if not name.endswith("position_ids")}


def lora(path: Path, layers: Iterable[tuple[str, int, int]]) -> None:
    """A real small LoRA of rank 4 in musubi-tuner's layout. layers: (module path, outputs, inputs)."""
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    for name, out, into in layers:
        own = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{own}.lora_down.weight": torch.randn(4, into), f"{own}.lora_up.weight": torch.randn(out, 4)}
        tensors[f"{own}.alpha"] = torch.tensor(4.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def write_all(models: Path, shared: Path, scratch: Path) -> None:
    """Every file that the shipped templates name, in the folders that README tells. scratch: for the tokenizers of the demo models."""
    demo = {**write_models(scratch, kind="wan"), **write_models(scratch, kind="hv")}

    def inside(part: str, name: str) -> dict[str, bytes]:
        info = read_header(demo[part]).tensors[name]
        return {name: demo[part].read_bytes()[info.start : info.end]}

    transformers, encoders = models / "diffusion_models", models / "text_encoders"
    high = wan(shared, "t2v-A14B")
    write(transformers / "wan2.1_t2v_1.3B_bf16.safetensors", wan(shared, "t2v-1.3B"), "BF16")
    write(transformers / "wan2.1_i2v_480p_14B_fp16.safetensors", wan(shared, "i2v-14B"), "F16")
    write(transformers / "wan2.2_t2v_low_noise_14B_fp16.safetensors", high, "F16")
    write(transformers / "wan2.2_t2v_high_noise_14B_fp16.safetensors", high, "F16")
    write(transformers / "hunyuan_video_t2v_720p_bf16.safetensors", hunyuan_video(shared), "BF16")
    write(transformers / "FramePackI2V_HY_bf16.safetensors", framepack(shared), "BF16")
    write(models / "vae" / "wan_2.1_vae.safetensors", wan_vae(), "BF16")
    write(models / "vae" / "hunyuan_video_vae_bf16.safetensors", hunyuan_vae(shared), "BF16")
    write(encoders / "umt5_xxl_fp16.safetensors", umt5(), "F16", inside("t5", SPIECE))
    write(encoders / "llava_llama3_fp16.safetensors", llama(), "F16", inside("text_encoder1", INSIDE))
    write(encoders / "clip_l.safetensors", clip_l(), "F16", inside("text_encoder2", INSIDE))
    write(models / "clip_vision" / "clip_vision_h.safetensors", clip_vision_h(), "F16")
    write(models / "clip_vision" / "sigclip_vision_patch14_384.safetensors", siglip(), "F16")
    shapes, scaled = qwen_vl()
    write(encoders / "qwen_2.5_vl_7b_fp8_scaled.safetensors", shapes, "BF16", scaled=scaled)
