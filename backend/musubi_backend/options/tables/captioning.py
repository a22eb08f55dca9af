"""Options of `caption_images_by_qwen_vl`."""

from __future__ import annotations

from ..option import CAPTION, Group, Option

DEFAULT_PROMPT = (
    "Describe this for someone who has to draw it without having seen it.\n"
    "Write one paragraph of plain sentences, without headings or lists. Say what is there and how it looks, where things are in "
    "relation to each other, what the surroundings and the light are like, and what happens if anything moves. Quote readable text "
    "word for word, in quotation marks and untranslated. Leave out guesses and praise."
)

GROUPS = (
    Group(
        "What to caption",
        (CAPTION,),
        (
            Option(
                "--image_dir",
                required=True,
                path="folder",
                help="Folder of the images and clips to describe. Folders in it are not looked into.",
            ),
            Option(
                "--media",
                default="all",
                choices=("all", "images", "videos"),
                own=True,
                help="Which files of the folder are described: images, clips, or both. A clip is described from frames spread over it.",
            ),
            Option(
                "--video_frames",
                int,
                8,
                minimum=2,
                maximum=64,
                unit="frames",
                own=True,
                advanced=True,
                help="How many frames of a clip the model sees; more need more memory.",
            ),
        ),
    ),
    Group(
        "Model",
        (CAPTION,),
        (
            Option(
                "--model_path",
                required=True,
                path="any",
                help="Qwen2.5-VL: a .safetensors file as for ComfyUI (bf16 or fp8_scaled), or a model folder in Hugging Face's layout.",
            ),
            Option(
                "--tokenizer",
                path="folder",
                own=True,
                advanced=True,
                help="Folder of the model's tokenizer. Default: looked for next to the model and in ComfyUI "
                "(comfy/text_encoders/qwen25_tokenizer).",
            ),
            Option(
                "--fp8_vl",
                bool,
                False,
                help="Keep the model's weights in fp8: half the memory, captions nearly as good. Files in fp8 stay so anyway.",
            ),
            Option(
                "--device",
                own=True,
                advanced=True,
                help="Device to run on, for example cuda, cuda:1 or cpu. Default: the GPU if there is one.",
            ),
        ),
    ),
    Group(
        "Captions",
        (CAPTION,),
        (
            Option(
                "--prompt",
                help="What the model is asked; \\n begins a new line. Default: it is asked for one detailed paragraph of what can be seen.",
            ),
            Option(
                "--max_new_tokens",
                int,
                1024,
                minimum=1,
                maximum=8192,
                unit="tokens",
                help="Longest caption; a longer one is cut off.",
            ),
            Option(
                "--max_size",
                int,
                1280,
                minimum=56,
                maximum=8192,
                unit="pixels",
                help="Images larger than this squared are shrunk to that area, their shape kept. Smaller values need less memory and "
                "see less.",
            ),
            Option(
                "--batch_size",
                int,
                1,
                minimum=1,
                maximum=64,
                unit="items",
                own=True,
                help="How many images are described at once: faster on a GPU, with more memory. Where that runs out, fewer are taken.",
            ),
        ),
    ),
    Group(
        "Output",
        (CAPTION,),
        (
            Option(
                "--output_format",
                default="jsonl",
                choices=("jsonl", "text"),
                help="jsonl: one file that lists every item with its caption, for use as image_jsonl_file. text: a text file next to "
                "each item.",
            ),
            Option(
                "--output_file",
                path="output",
                help="The JSONL file; needed for that format. Clips go into one of their own next to it, called ..._videos.jsonl.",
            ),
            Option(
                "--caption_extension",
                default=".txt",
                own=True,
                advanced=True,
                help="End of the text files' names.",
            ),
            Option(
                "--overwrite",
                bool,
                False,
                own=True,
                help="Describe again what has a caption already. Without it those are kept, so a stopped run continues where it was.",
            ),
        ),
    ),
)
