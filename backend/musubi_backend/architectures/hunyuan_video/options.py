"""The settings that only HunyuanVideo has, those that it shares with its relatives, and what is different about the common ones."""

from __future__ import annotations

from ...options.option import CACHE_LATENTS, CACHE_TEXT, GENERATE, NOTHING, TRAIN, WEIGHTS, Group, Option, OwnOptions

TRUE_GUIDANCE = (
    "Guidance by a second prediction with the negative prompt, which doubles the time. 1 is off, as these models are meant to be used: "
    "--embedded_cfg_scale is their own guidance."
)

SHARED = (
    Group(
        "Sampling",
        (GENERATE,),
        (
            Option(
                "--embedded_cfg_scale",
                float,
                6.0,
                minimum=0,
                maximum=100,
                help="Guidance that the model was taught to give by itself (distilled): how strictly the prompt is followed, at no cost.",
            ),
        ),
    ),
    Group(
        "Text and image encoders",
        (CACHE_TEXT, CACHE_LATENTS, TRAIN, GENERATE),
        (
            Option(
                "--text_encoder1",
                path="any",
                verbs=(CACHE_TEXT, TRAIN, GENERATE),
                differs={CACHE_TEXT: {"required": True}},
                help="LLaVA-Llama3, the large text encoder: ComfyUI's file (llava_llama3_fp16.safetensors), any part of a split model, or "
                "a Hugging Face folder. Training needs it only for sample prompts.",
                effect=NOTHING,
            ),
            Option(
                "--text_encoder2",
                path="any",
                verbs=(CACHE_TEXT, TRAIN, GENERATE),
                differs={CACHE_TEXT: {"required": True}},
                help="CLIP-L, the small text encoder: a file (clip_l.safetensors) or a Hugging Face folder. Training needs it only for "
                "sample prompts.",
                effect=NOTHING,
            ),
            Option(
                "--fp8_llm",
                bool,
                False,
                verbs=(CACHE_TEXT, TRAIN, GENERATE),
                advanced=True,
                help="Hold the large text encoder in fp8: about 8 GB instead of 16, slightly less exact.",
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
                advanced=True,
                help="Let the VAE work on tiles of images larger than 256 pixels: much less memory, faint seams possible.",
                effect=NOTHING,
            ),
            Option(
                "--vae_chunk_size",
                int,
                minimum=1,
                maximum=1024,
                unit="columns",
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
                advanced=True,
                help="Side of the VAE's tiles, a multiple of 32, and turns tiles on. Smaller needs less memory. Default: 256.",
                effect=NOTHING,
            ),
        ),
    ),
)
"""Settings of all models with HunyuanVideo's encoders, VAE and embedded guidance."""

_GROUPS = (
    Group(
        "LoRA",
        (GENERATE,),
        (
            Option(
                "--exclude_single_blocks",
                bool,
                False,
                advanced=True,
                help="Use only what the LoRAs change in the double blocks: can spare the model's look where a LoRA overdoes it.",
            ),
        ),
    ),
    Group(
        "Text and image encoders",
        (CACHE_TEXT, CACHE_LATENTS, TRAIN, GENERATE),
        (
            Option(
                "--text_encoder_dtype",
                verbs=(CACHE_TEXT, TRAIN),
                advanced=True,
                help="Precision (dtype) both text encoders compute in and are cached in: float32, bfloat16 or float16. Default: float16.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "HunyuanVideo model",
        (TRAIN, GENERATE),
        (
            Option(
                "--dit_dtype",
                verbs=(TRAIN,),
                advanced=True,
                help="Precision (dtype) of the frozen transformer: bfloat16, float16 or float32. Default: bfloat16. With "
                "--mixed_precision bf16 or fp16 it computes in that.",
                effect=WEIGHTS,
            ),
            Option(
                "--dit_in_channels",
                int,
                16,
                differs={GENERATE: {"default": None}},
                minimum=16,
                maximum=32,
                advanced=True,
                help="Input channels of the transformer: 16 for text-to-video, 32 for the image-to-video models of SkyReels, which see the "
                "first frame in the other 16. It must match --dit; generation can leave it to the file.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "HunyuanVideo guidance",
        (GENERATE,),
        (
            Option(
                "--split_uncond",
                bool,
                False,
                advanced=True,
                no_effect="the predictions with and without the prompt are always made one after the other",
                help="Predict with the prompt and with the negative prompt one after the other.",
            ),
        ),
    ),
    Group(
        "Video to video",
        (GENERATE,),
        (
            Option(
                "--strength",
                float,
                0.8,
                minimum=0.01,
                maximum=1,
                advanced=True,
                help="Share of the steps that are done on --video_path: 1 keeps nothing of it, lower values keep more.",
            ),
        ),
    ),
    Group(
        "Attention",
        (GENERATE,),
        (
            Option(
                "--split_attn",
                bool,
                False,
                advanced=True,
                help="Compute attention one sample at a time. Predictions are made one by one here anyway, so it changes nothing.",
            ),
        ),
    ),
    Group(
        "Block swap (offloading to system RAM)",
        (TRAIN, GENERATE),
        (
            Option(
                "--img_in_txt_in_offloading",
                bool,
                False,
                verbs=(GENERATE,),
                advanced=True,
                no_effect="the layers that take in image and text need at most 0.4 GB and stay on the GPU",
                help="Also keep the layers that take in image and text in system RAM.",
            ),
        ),
    ),
)

OPTIONS = OwnOptions(
    groups=(*SHARED, *_GROUPS),
    takes=("video_path", "fp8_fast", "compile_args", "offload_text_encoder"),
    lacks={"vae_tiling": (GENERATE,), "disable_numpy_memmap": (GENERATE,)},  # it always works on tiles
    changes={
        "from_file": {GENERATE: {"own": True}},
        "interactive": {GENERATE: {"own": True}},
        "video_length": {GENERATE: {"help": "Length; 4n+1 frames, at 24 frames per second 129 for 5 seconds.", "default": 129}},
        "fps": {GENERATE: {"default": 24}},
        "infer_steps": {GENERATE: {"help": "Denoising steps: more are finer and slower.", "default": 50}},
        "flow_shift": {
            GENERATE: {
                "help": "How many of the steps are spent at high noise: larger favours layout and motion, smaller detail. About 17 with "
                "fewer than 20 steps.",
                "default": 7.0,
            }
        },
        "guidance_scale": {GENERATE: {"help": TRUE_GUIDANCE, "default": 1.0}},
        "output_type": {GENERATE: {"choices": ("video", "images", "latent", "both")}},
        "latent_path": {GENERATE: {"most": None}},
        "image_path": {GENERATE: {"help": "First frame, for SkyReels' image-to-video models; it is brought to --video_size."}},
        "attn_mode": {GENERATE: {"choices": ("flash", "torch", "sageattn", "xformers", "sdpa")}},
        "blocks_to_swap": {GENERATE: {"default": None}},
    },
    hints={
        "network_module": 'HunyuanVideo: "networks.lora".',
        "discrete_flow_shift": "HunyuanVideo: 7.",
        "mixed_precision": "HunyuanVideo, no: --dit_dtype, else bf16, whatever the file.",
        "vae_dtype": "HunyuanVideo: float16.",
        "video_size": "HunyuanVideo was trained on sizes up to 720x1280.",
    },
)
