"""The encoders that HunyuanVideo and FramePack share: Llama and CLIP for text, the VAE's memory settings, SigLIP for pictures."""

from __future__ import annotations

from ..option import CACHE_LATENTS, CACHE_TEXT, GENERATE, NOTHING, TRAIN, Group, Option

_BOTH = ("hv", "fp")

GROUPS = (
    Group(
        "Text and image encoders",
        (CACHE_TEXT, CACHE_LATENTS, TRAIN, GENERATE),
        (
            Option(
                "--text_encoder1",
                path="any",
                verbs=(CACHE_TEXT, TRAIN, GENERATE),
                architectures=_BOTH,
                differs={CACHE_TEXT: {"required": True}},
                help="LLaVA-Llama3, the large text encoder: ComfyUI's file (llava_llama3_fp16.safetensors), any part of a split model, or "
                "a Hugging Face folder. Training needs it only for sample prompts.",
                effect=NOTHING,
            ),
            Option(
                "--text_encoder2",
                path="any",
                verbs=(CACHE_TEXT, TRAIN, GENERATE),
                architectures=_BOTH,
                differs={CACHE_TEXT: {"required": True}},
                help="CLIP-L, the small text encoder: a file (clip_l.safetensors) or a Hugging Face folder. Training needs it only for "
                "sample prompts.",
                effect=NOTHING,
            ),
            Option(
                "--text_encoder_dtype",
                verbs=(CACHE_TEXT, TRAIN),
                architectures=("hv",),
                advanced=True,
                help="Number format both text encoders compute in and are cached in: float32, bfloat16 or float16. Unset, float16.",
                effect=NOTHING,
            ),
            Option(
                "--fp8_llm",
                bool,
                False,
                verbs=(CACHE_TEXT, TRAIN, GENERATE),
                architectures=_BOTH,
                advanced=True,
                help="Hold the large text encoder in 8-bit floats: about 8 GB instead of 16, slightly less exact.",
                effect=NOTHING,
            ),
            Option(
                "--image_encoder",
                path="any",
                verbs=(CACHE_LATENTS, TRAIN, GENERATE),
                architectures=("fp",),
                differs={CACHE_LATENTS: {"required": True}},
                help="SigLIP, which looks at the start picture: ComfyUI's file (sigclip_vision_patch14_384.safetensors) or a Hugging Face "
                "folder. Training needs it only for sample prompts.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "Memory of the VAE",
        (CACHE_LATENTS, TRAIN, GENERATE),
        (
            Option(
                "--vae_tiling",
                bool,
                False,
                architectures=_BOTH,
                without=("hv_generate_video",),  # it always works on tiles
                advanced=True,
                help="Let the VAE work on tiles of pictures larger than 256 pixels: much less memory, faint seams possible.",
                effect=NOTHING,
            ),
            Option(
                "--vae_chunk_size",
                int,
                minimum=1,
                maximum=1024,
                unit="columns",
                architectures=_BOTH,
                advanced=True,
                help="Let the VAE's convolutions work on pieces about this wide: less memory, the same result. 32 is a good start.",
                effect=NOTHING,
            ),
            Option(
                "--vae_spatial_tile_sample_min_size",
                int,
                minimum=32,
                maximum=4096,
                unit="pixels",
                architectures=_BOTH,
                advanced=True,
                help="Side of the VAE's tiles, a multiple of 32, and turns tiles on. Smaller needs less memory. Unset, 256.",
                effect=NOTHING,
            ),
        ),
    ),
)
