"""Weight files and how they are loaded."""

from __future__ import annotations

from ...architectures.wan.card import CARD as WAN
from ..option import CACHE_LATENTS, CACHE_TEXT, GENERATE, NOTHING, TRAIN, WEIGHTS, Group, Option

_TASKS = tuple(task.name for task in WAN.tasks)

GROUPS = (
    Group(
        "Models",
        (TRAIN, GENERATE),
        (
            Option(
                "--task",
                default="t2v-14B",
                choices=_TASKS,
                architectures=("wan",),
                help="Which Wan model the weight file is: its kind (t2v makes video from text, t2i single images, i2v starts "
                "from a picture, flf2v also ends with one, FC follows a control video; A14B are Wan2.2's experts) and its size. "
                "It must match --dit; a file of another size is refused by name.",
                effect=WEIGHTS,
            ),
            Option(
                "--dit",
                path="file",
                differs={name: {"path": "any"} for name in ("fpack_train_network", "fpack_generate_video")},
                help="Weights of the diffusion transformer, safetensors, in the original or ComfyUI's layout. Of a file split in several "
                "parts, name any one; for FramePack also the folder. Training needs it, and so does generating unless --latent_path only "
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
                without=("fpack_generate_video",),
                advanced=True,
                help="Number format the VAE computes in: float32, bfloat16 or float16. Unset, the architecture's own choice (bfloat16 "
                "for Wan, float16 for the others); float32 is the most exact and takes twice the memory.",
                effect=NOTHING,
            ),
            Option(
                "--vae_cache_cpu",
                bool,
                False,
                verbs=(CACHE_LATENTS, TRAIN, GENERATE),
                architectures=("wan",),
                advanced=True,
                help="Let the VAE keep the frames it carries from chunk to chunk in main memory: less GPU memory for long or large "
                "clips, a little slower.",
                effect=NOTHING,
            ),
            Option(
                "--t5",
                path="file",
                verbs=(CACHE_TEXT, TRAIN, GENERATE),
                architectures=("wan",),
                differs={CACHE_TEXT: {"required": True}},
                help="Weights of the umt5-xxl text encoder, ComfyUI's file or the original. Training needs it only for sample prompts.",
                effect=NOTHING,
            ),
            Option(
                "--fp8_t5",
                bool,
                False,
                verbs=(CACHE_TEXT, TRAIN, GENERATE),
                architectures=("wan",),
                advanced=True,
                help="Hold the text encoder in 8-bit floats, which halves its memory to about 7 GB.",
                effect=NOTHING,
            ),
            Option(
                "--clip",
                path="file",
                verbs=(CACHE_LATENTS, TRAIN, GENERATE),
                architectures=("wan",),
                advanced=True,
                help="Weights of the CLIP image encoder that Wan2.1 image-to-video models look at the first frame with; Wan2.2 has none. "
                "Training needs it only for sample videos.",
                effect=NOTHING,
            ),
            Option(
                "--ckpt_dir",
                path="folder",
                verbs=(GENERATE,),
                architectures=("wan",),
                advanced=True,
                help="Folder with all weights as Wan published them; of the files that are not named themselves, those in it are used.",
            ),
            Option(
                "--disable_numpy_memmap",
                bool,
                False,
                without=("hv_generate_video",),
                advanced=True,
                moot="weights are never read through numpy's mapping",
                help="Read weight files without mapping them into memory.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "Two models, high and low noise (Wan2.2)",
        (TRAIN, GENERATE),
        (
            Option(
                "--dit_high_noise",
                path="file",
                architectures=("wan",),
                advanced=True,
                help="Weights of the second transformer, which does the early, noisy steps; --dit is then the one for the others. When "
                "training, one LoRA serves both, unless --lora_per_expert is given.",
                effect=WEIGHTS,
            ),
            Option(
                "--timestep_boundary",
                float,
                architectures=("wan",),
                advanced=True,
                minimum=0,
                maximum=1000,
                differs={TRAIN: {"kind": int}},
                help="Where the high-noise model hands over to the low-noise one: a share of the noise (0 to 1), or a timestep (up to "
                "1000). Unset, the value the models were trained with: 0.875 for t2v-A14B, 0.9 for i2v-A14B.",
                effect=WEIGHTS,
            ),
            Option(
                "--force_v2_1_time_embedding",
                bool,
                False,
                architectures=("wan",),
                advanced=True,
                moot="all tokens of a video have the same time, so there is only ever one time embedding per video here",
                help="Compute one time embedding per video as Wan2.1 does, instead of one per token: less memory with Wan2.2.",
                effect=NOTHING,
            ),
            Option(
                "--offload_inactive_dit",
                bool,
                False,
                architectures=("wan",),
                advanced=True,
                help="Keep the model that is not at work in main memory. Not together with --blocks_to_swap.",
                effect=NOTHING,
            ),
            Option(
                "--lora_per_expert",
                bool,
                False,
                verbs=(TRAIN,),
                architectures=("wan",),
                advanced=True,
                own=True,
                help="With --dit_high_noise, train a LoRA for each of the two models in one run: NAME-high.safetensors and "
                "NAME-low.safetensors. Each learns from its own noise levels only; with --network_weights both begin from that file.",
                effect=WEIGHTS,
            ),
            Option(
                "--lazy_loading",
                bool,
                False,
                verbs=(GENERATE,),
                architectures=("wan",),
                advanced=True,
                help="Load each of the two models only when its steps begin, so that one at a time takes memory.",
            ),
            Option(
                "--lora_weight_high_noise",
                nargs="*",
                path="file",
                verbs=(GENERATE,),
                architectures=("wan",),
                advanced=True,
                help="LoRA files for the high-noise model.",
            ),
            Option(
                "--lora_multiplier_high_noise",
                float,
                nargs="*",
                verbs=(GENERATE,),
                architectures=("wan",),
                advanced=True,
                minimum=-10,
                maximum=10,
                help="Strength of each LoRA of the high-noise model.",
            ),
            Option(
                "--guidance_scale_high_noise",
                float,
                verbs=(GENERATE,),
                architectures=("wan",),
                advanced=True,
                minimum=0,
                maximum=100,
                help="Guidance during the steps of the high-noise model. Unset, the task's own (4 for t2v-A14B, 3.5 for i2v-A14B).",
            ),
        ),
    ),
)
