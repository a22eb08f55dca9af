"""The names of HunyuanVideo's layers in LoRA files: its own, ComfyUI's and diffusers'. Sources: the state dicts of
github.com/Tencent-Hunyuan/HunyuanVideo, and of diffusers' and ComfyUI's versions."""

from __future__ import annotations

from ...lora.naming import Naming, Row, Table

DIFFUSERS = "hv_diffusers"


def _rows() -> tuple[Row, ...]:
    """Columns: original, ComfyUI, diffusers."""
    rows: list[Row] = []

    def row(original: str, comfy: str, *diffusers: str) -> None:
        rows.append(((original,), (comfy,), diffusers))

    double, theirs = "double_blocks.{}", "transformer_blocks.{}"
    parts = {"img": ("to_{}", "to_out.0", "ff", "norm1"), "txt": ("add_{}_proj", "to_add_out", "ff_context", "norm1_context")}
    for stream, (qkv, out, mlp, norm) in parts.items():
        attention = f"{double}.{stream}_attn"
        row(f"{attention}_qkv", f"{attention}.qkv", *(f"{theirs}.attn." + qkv.format(x) for x in "qkv"))
        row(f"{attention}_proj", f"{attention}.proj", f"{theirs}.attn.{out}")
        row(f"{double}.{stream}_mlp.fc1", f"{double}.{stream}_mlp.0", f"{theirs}.{mlp}.net.0.proj")
        row(f"{double}.{stream}_mlp.fc2", f"{double}.{stream}_mlp.2", f"{theirs}.{mlp}.net.2")
        row(f"{double}.{stream}_mod.linear", f"{double}.{stream}_mod.lin", f"{theirs}.{norm}.linear")
    single, theirs = "single_blocks.{}", "single_transformer_blocks.{}"
    row(f"{single}.linear1", f"{single}.linear1", *(f"{theirs}.attn.to_{x}" for x in "qkv"), f"{theirs}.proj_mlp")
    row(f"{single}.linear2", f"{single}.linear2", f"{theirs}.proj_out")
    row(f"{single}.modulation.linear", f"{single}.modulation.lin", f"{theirs}.norm.linear")
    refiner, theirs = "txt_in.individual_token_refiner.blocks.{}", "context_embedder.token_refiner.refiner_blocks.{}"
    row(f"{refiner}.self_attn_qkv", f"{refiner}.self_attn.qkv", *(f"{theirs}.attn.to_{x}" for x in "qkv"))
    row(f"{refiner}.self_attn_proj", f"{refiner}.self_attn.proj", f"{theirs}.attn.to_out.0")
    row(f"{refiner}.mlp.fc1", f"{refiner}.mlp.0", f"{theirs}.ff.net.0.proj")
    row(f"{refiner}.mlp.fc2", f"{refiner}.mlp.2", f"{theirs}.ff.net.2")
    row(f"{refiner}.adaLN_modulation.1", f"{refiner}.adaLN_modulation.1", f"{theirs}.norm_out.linear")
    row("img_in.proj", "img_in.proj", "x_embedder.proj")
    row("txt_in.input_embedder", "txt_in.input_embedder", "context_embedder.proj_in")
    embedders = {"time_in": "time_text_embed.timestep_embedder", "guidance_in": "time_text_embed.guidance_embedder",
                 "txt_in.t_embedder": "context_embedder.time_text_embed.timestep_embedder"}  # fmt: skip
    for ours, theirs in embedders.items():
        row(f"{ours}.mlp.0", f"{ours}.in_layer", f"{theirs}.linear_1")
        row(f"{ours}.mlp.2", f"{ours}.out_layer", f"{theirs}.linear_2")
    for number, layer in ((1, "in_layer"), (2, "out_layer")):
        theirs = f"context_embedder.time_text_embed.text_embedder.linear_{number}"
        row(f"txt_in.c_embedder.linear_{number}", f"txt_in.c_embedder.{layer}", theirs)
    row("vector_in.in_layer", "vector_in.in_layer", "time_text_embed.text_embedder.linear_1")
    row("vector_in.out_layer", "vector_in.out_layer", "time_text_embed.text_embedder.linear_2")
    return tuple(rows)


TABLE = Table(
    (
        Naming("hv", "HunyuanVideo", behind_transformer="diffusion-pipe"),
        Naming("hv_comfy", "HunyuanVideo, ComfyUI's names"),
        Naming(DIFFUSERS, "HunyuanVideo with diffusers' names", diffusers=True),
    ),
    _rows(),
    said=(("hunyuan", "hv"), ("flux", ""), ("chroma", "")),
)
