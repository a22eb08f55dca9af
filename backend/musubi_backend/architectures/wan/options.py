"""The settings that only Wan has, and what is different about the common ones."""

from __future__ import annotations

from ...options.option import CACHE_LATENTS, CACHE_TEXT, GENERATE, NOTHING, TRAIN, WEIGHTS, Group, Option, OwnOptions
from .card import CARD

_TASKS = tuple(task.name for task in CARD.tasks)

_GROUPS = (
    Group(
        "Image conditions",
        (CACHE_LATENTS,),
        (
            Option(
                "--i2v",
                bool,
                False,
                advanced=True,
                help="Also cache the first frame as the image an image-to-video model starts from. --clip implies it.",
            ),
            Option(
                "--last_frame",
                bool,
                False,
                advanced=True,
                own=True,
                help="Also cache the last frame, for first-and-last-frame models (task flf2v). Implies --i2v.",
            ),
            Option(
                "--one_frame",
                bool,
                False,
                verbs=(CACHE_LATENTS, TRAIN),
                advanced=True,
                help="Cache or sample for one-frame training: a single target frame steered by control images.",
                effect=WEIGHTS,
            ),
        ),
    ),
    Group(
        "Video",
        (GENERATE,),
        (
            Option(
                "--cpu_noise",
                bool,
                False,
                advanced=True,
                help="Draw the noise on the CPU as ComfyUI does, so that a seed gives the same start on every machine.",
            ),
        ),
    ),
    Group(
        "Sampling",
        (GENERATE,),
        (
            Option(
                "--cfg_skip_mode",
                default="none",
                choices=("early", "late", "middle", "early_late", "alternate", "none"),
                advanced=True,
                help="In which steps guidance is skipped to save time; --cfg_apply_ratio says in how many it stays.",
            ),
            Option(
                "--cfg_apply_ratio",
                float,
                minimum=0,
                maximum=1,
                advanced=True,
                help="Share of the steps that keep guidance, with --cfg_skip_mode. Default: all.",
            ),
            Option(
                "--slg_layers",
                advanced=True,
                help='Blocks to leave out in skip layer guidance, as "9,10": can steady motion and anatomy.',
            ),
            Option(
                "--slg_scale",
                float,
                3.0,
                minimum=0,
                maximum=100,
                advanced=True,
                help="Strength of skip layer guidance in its original mode.",
            ),
            Option(
                "--slg_start",
                float,
                0.0,
                minimum=0,
                maximum=1,
                advanced=True,
                help="Share of the steps at which it begins.",
            ),
            Option(
                "--slg_end",
                float,
                0.3,
                minimum=0,
                maximum=1,
                advanced=True,
                help="Share of the steps at which it ends.",
            ),
            Option(
                "--slg_mode",
                choices=("original", "uncond"),
                advanced=True,
                help="original adds the difference to a third pass without those blocks; uncond leaves them out of the unconditional "
                "pass. Default: off.",
            ),
        ),
    ),
    Group(
        "Output",
        (GENERATE,),
        (
            Option(
                "--trim_tail_frames",
                int,
                0,
                minimum=0,
                maximum=10000,
                unit="frames",
                advanced=True,
                help="Frames to cut off the end before saving.",
            ),
        ),
    ),
    Group(
        "Images and videos to start from",
        (GENERATE,),
        (
            Option(
                "--control_path",
                path="any",
                advanced=True,
                help="Control video, or folder of images, for Fun-Control models; at least as many frames as are made.",
            ),
        ),
    ),
    Group(
        "Models",
        (TRAIN, GENERATE),
        (
            Option(
                "--task",
                default="t2v-14B",
                choices=_TASKS,
                help="Which Wan model the weight file is: its kind (t2v makes video from text, t2i single images, i2v starts "
                "from an image, flf2v also ends with one, FC follows a control video; A14B are Wan2.2's experts) and its size. "
                "It must match --dit; a file of another size is rejected by name.",
                effect=WEIGHTS,
            ),
            Option(
                "--vae_cache_cpu",
                bool,
                False,
                verbs=(CACHE_LATENTS, TRAIN, GENERATE),
                advanced=True,
                help="Let the VAE keep the frames it carries from chunk to chunk in system RAM: less GPU memory for long or large "
                "clips, a little slower.",
                effect=NOTHING,
            ),
            Option(
                "--t5",
                path="file",
                verbs=(CACHE_TEXT, TRAIN, GENERATE),
                differs={CACHE_TEXT: {"required": True}},
                help="Weights of the umt5-xxl text encoder, ComfyUI's file or the original. Training needs it only for sample prompts.",
                effect=NOTHING,
            ),
            Option(
                "--fp8_t5",
                bool,
                False,
                verbs=(CACHE_TEXT, TRAIN, GENERATE),
                advanced=True,
                help="Hold the text encoder in fp8, which halves its memory to about 7 GB.",
                effect=NOTHING,
            ),
            Option(
                "--clip",
                path="file",
                verbs=(CACHE_LATENTS, TRAIN, GENERATE),
                advanced=True,
                help="Weights of the CLIP image encoder that encodes the first frame for Wan2.1 image-to-video models; Wan2.2 has none. "
                "Training needs it only for sample videos.",
                effect=NOTHING,
            ),
            Option(
                "--ckpt_dir",
                path="folder",
                verbs=(GENERATE,),
                advanced=True,
                help="Folder with all weights as Wan published them; of the files that are not named themselves, those in it are used.",
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
                advanced=True,
                help="Weights of the second transformer, which does the early, noisy steps; --dit is then the one for the others. When "
                "training, one LoRA serves both, unless --lora_per_expert is given.",
                effect=WEIGHTS,
            ),
            Option(
                "--timestep_boundary",
                float,
                advanced=True,
                minimum=0,
                maximum=1000,
                differs={TRAIN: {"kind": int}},
                help="Boundary between the high-noise and the low-noise model: a sigma (0 to 1) or a timestep (up to "
                "1000). Default: the value the models were trained with: 0.875 for t2v-A14B, 0.9 for i2v-A14B.",
                effect=WEIGHTS,
            ),
            Option(
                "--force_v2_1_time_embedding",
                bool,
                False,
                advanced=True,
                no_effect="all tokens of a video have the same time, so there is only ever one time embedding per video here",
                help="Compute one time embedding per video as Wan2.1 does, instead of one per token: less memory with Wan2.2.",
                effect=NOTHING,
            ),
            Option(
                "--offload_inactive_dit",
                bool,
                False,
                advanced=True,
                help="Offload the inactive expert to system RAM. Not together with --blocks_to_swap.",
                effect=NOTHING,
            ),
            Option(
                "--lora_per_expert",
                bool,
                False,
                verbs=(TRAIN,),
                advanced=True,
                own=True,
                help="With --dit_high_noise, train a LoRA for each of the two models in one run: NAME-high.safetensors and "
                "NAME-low.safetensors. Each learns from its own noise levels only; with --network_weights both begin from that file.",
                effect=WEIGHTS,
            ),
            Option(
                "--steps_per_expert",
                int,
                1,
                verbs=(TRAIN,),
                advanced=True,
                own=True,
                minimum=1,
                maximum=1000,
                help="With --dit_high_noise, so many steps in a row train the same expert; each keeps its share of all steps. With "
                "--offload_inactive_dit the experts then change places that much less often. 1: drawn for each batch.",
                effect=WEIGHTS,
            ),
            Option(
                "--lazy_loading",
                bool,
                False,
                verbs=(GENERATE,),
                advanced=True,
                help="Load each of the two models only when its steps begin, so that one at a time takes memory.",
            ),
            Option(
                "--lora_weight_high_noise",
                nargs="*",
                path="file",
                verbs=(GENERATE,),
                advanced=True,
                help="LoRA files for the high-noise model.",
            ),
            Option(
                "--lora_multiplier_high_noise",
                float,
                nargs="*",
                verbs=(GENERATE,),
                advanced=True,
                minimum=-10,
                maximum=10,
                help="Strength of each LoRA of the high-noise model.",
            ),
            Option(
                "--guidance_scale_high_noise",
                float,
                verbs=(GENERATE,),
                advanced=True,
                minimum=0,
                maximum=100,
                help="Guidance during the steps of the high-noise model. Default: the task's own (4 for t2v-A14B, 3.5 for i2v-A14B).",
            ),
        ),
    ),
)

OPTIONS = OwnOptions(
    groups=_GROUPS,
    takes=(
        "sample_solver",
        "include_patterns",
        "exclude_patterns",
        "end_image_path",
        "video_path",
        "one_frame_inference",
        "control_image_path",
        "control_image_mask_path",
        "fp8_scaled",
        "fp8_fast",
        "compile_args",
        "offload_text_encoder",
    ),
    changes={
        "video_path": {GENERATE: {"unsupported": "musubi-tuner's Wan generator takes it and then starts from noise all the same"}},
        "end_image_path": {
            GENERATE: {
                "help": "Last frame. Wan's flf2v models are made for it; its other image-to-video models get it as an extra frame at the "
                "end (--trim_tail_frames can cut what goes wrong there)."
            }
        },
    },
    hints={
        "network_module": 'Wan: "networks.lora_wan".',
        "discrete_flow_shift": "Wan: 3 to 5.",
        "mixed_precision": "A bf16 or fp16 Wan file is computed in its own dtype: choose auto or the file's own dtype; no: the file's "
        "dtype, bf16 for fp8 files.",
        "vae_dtype": "Wan: bfloat16.",
        "video_size": "Wan was trained on 480x832 and 720x1280.",
        "video_length": "81 for Wan video, 1 for images.",
        "infer_steps": "50 for Wan t2v.",
        "flow_shift": "Wan: 5, its i2v at 480x832 3, t2v-A14B 12.",
        "image_path": "With Wan the video gets its shape, with about the area of --video_size.",
    },
)
