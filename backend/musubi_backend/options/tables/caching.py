"""The dataset, and what the two caching tools do with it."""

from __future__ import annotations

from ..option import CACHE_LATENTS, CACHE_TEXT, GENERATE, TRAIN, WEIGHTS, Group, Option

_CACHING = (CACHE_LATENTS, CACHE_TEXT)

GROUPS = (
    Group(
        "Dataset",
        (CACHE_LATENTS, CACHE_TEXT, TRAIN),
        (
            Option(
                "--dataset_config",
                path="file",
                required=True,
                differs={TRAIN: {"required": False}},
                help="Dataset file (.toml or .json): the folders with images or clips, captions, resolution, frames, repeats.",
                effect=WEIGHTS,
            ),
        ),
    ),
    Group(
        "Machine",
        (CACHE_LATENTS, CACHE_TEXT, GENERATE),
        (
            Option("--device", help='Where to compute: "cuda", "cuda:1", "cpu". Default: the first GPU, or the CPU where there is none.'),
            Option(
                "--num_workers",
                int,
                verbs=_CACHING,
                minimum=1,
                maximum=256,
                unit="threads",
                advanced=True,
                help="How many threads read and resize media. Default: the processors that computing leaves free, at least one. Fewer need "
                "less system RAM.",
                differs={
                    CACHE_TEXT: {
                        "help": "How many threads read media; captions need none.",
                        "no_effect": "captions are read at once, and media are never opened",
                    }
                },
            ),
            Option(
                "--disable_cudnn_backend",
                bool,
                False,
                verbs=(CACHE_LATENTS,),
                advanced=True,
                help="Do without cuDNN's convolutions. Worth trying when the VAE fails or crawls, on AMD cards above all.",
            ),
        ),
    ),
    Group(
        "Caching",
        _CACHING,
        (
            Option(
                "--batch_size",
                int,
                minimum=1,
                maximum=1024,
                unit="items",
                help="How many items are encoded at once. Default: the dataset's batch_size. More is faster and takes more GPU memory.",
            ),
            Option(
                "--skip_existing",
                bool,
                False,
                help="Leave items alone whose cache is there, fits, and was made from the media, encoder files and settings of now. What "
                "caches were made from is noted next to them; those of musubi-tuner have no notes and are taken as good.",
            ),
            Option(
                "--on_bad_items",
                choices=("stop", "skip"),
                default="stop",
                own=True,
                help="What to do about clips and images that cannot be used: stop with the list of them, or list them and skip them.",
            ),
            Option(
                "--keep_cache",
                bool,
                False,
                help="Keep cache files whose item is no longer in the dataset. Without it they are deleted at the end.",
            ),
        ),
    ),
    Group(
        "Image conditions",
        (CACHE_LATENTS,),
        (),
    ),
    Group(
        "Looking instead of encoding",
        (CACHE_LATENTS,),
        (
            Option(
                "--debug_mode",
                choices=("image", "console", "video"),
                advanced=True,
                help="Show what would be encoded, after resizing and cutting, and encode nothing: in windows (image), as characters "
                "(console), or written as small mp4 files (video).",
            ),
            Option(
                "--console_width",
                int,
                80,
                minimum=10,
                maximum=1000,
                unit="characters",
                advanced=True,
                help="Width of the images that --debug_mode console draws.",
            ),
            Option("--console_back", advanced=True, help='Background colour of --debug_mode console, for example "BLACK" or "WHITE".'),
            Option(
                "--console_num_images",
                int,
                minimum=1,
                maximum=1_000_000,
                unit="images",
                advanced=True,
                help="How many images --debug_mode console shows of each dataset, without waiting for a key. Default: all, one by one.",
            ),
        ),
    ),
)
