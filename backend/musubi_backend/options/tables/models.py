"""Weight files and how they are loaded."""

from __future__ import annotations

from ..option import CACHE_LATENTS, GENERATE, NOTHING, TRAIN, WEIGHTS, Group, Option

GROUPS = (
    Group(
        "Models",
        (TRAIN, GENERATE),
        (
            Option(
                "--dit",
                path="file",
                help="Weights of the diffusion transformer, safetensors, in the original or ComfyUI's layout. Of a file split in several "
                "parts, name any one. Training needs it, and so does generating unless --latent_path only "
                "decodes.",
                effect=WEIGHTS,
            ),
            Option(
                "--vae",
                path="any",
                verbs=(CACHE_LATENTS, TRAIN, GENERATE),
                help="Weights of the VAE, which turns frames into latents and back. Training needs it only for sample videos.",
                effect=NOTHING,
            ),
            Option(
                "--vae_dtype",
                verbs=(CACHE_LATENTS, TRAIN, GENERATE),
                advanced=True,
                help="Precision (dtype) the VAE computes in: float32, bfloat16 or float16. Default: the architecture's own choice; "
                "float32 is the most exact and takes twice the memory.",
                effect=NOTHING,
            ),
            Option(
                "--disable_numpy_memmap",
                bool,
                False,
                advanced=True,
                no_effect="weights are never read through numpy's mapping",
                help="Read weight files without mapping them into memory.",
                effect=NOTHING,
            ),
        ),
    ),
)
