"""Facts about Dots, a model that exists only to show what an architecture needs."""

from __future__ import annotations

from ..card import TRANSFORMER, VAE, Card, Part, Task

CARD = Card(
    id="dots",
    name="dots",
    title="Dots",
    family="Dots",
    tool_prefix="dots_",
    network_module="networks.lora_dots",
    modelspec="dots",
    implementation="tests/architectures",
    lora_blocks=("DotsBlock",),
    lora_exclude=r".*norm.*",
    tasks=(Task("dots", dim=32, ffn_dim=64, num_heads=1, num_layers=2, in_dim=3, steps=4, flow_shift=1.0, guidance_scale=1.0, frames=5),),
    parts=(
        Part("dit", TRANSFORMER, "The transformer", "diffusion_models", "dots.safetensors", "float32", kinds=("dots_transformer",)),
        Part("vae", VAE, "Nothing: latents are shrunk images", "vae", "none.safetensors", "float32", kinds=("dots_vae",)),
    ),
    latent_channels=3,
    text_keys=("letters",),
)
