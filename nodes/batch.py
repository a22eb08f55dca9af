"""Many prompts in one go: the models are loaded once per GPU, prompts that fail are reported and the others continue."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..backend.musubi_backend import content, place
from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.architectures.card import IMAGE, VIDEO
from ..backend.musubi_backend.atomic import replacing
from ..backend.musubi_backend.counted import counted
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.option import GENERATE
from . import experts, loras, media_inputs, prompt_batch
from .families import any_tool, shared_widget, titles
from .generate import device_input, size_inputs
from .jobs import guard
from .jobs.config import engine_stamp
from .models import MODELS, card_of
from .prompt_batch import ATTENTION, SEEDS, SOURCES, STRIDE, Prompt, lines_of, seeded
from .sizes import length_problems, size_problems
from .spec import ANY, Host, Input, Node, NodeSpec, Output, Problem, Result, refused
from .video import next_path, output_prefix

_IN_SECONDS = titles(card for card in cards().values() if card.length_in_seconds)
_ONE = {VIDEO: "a video", IMAGE: "an image"}
_MADE = " or ".join(dict.fromkeys(_ONE[card.makes] for card in cards().values()))


class BatchProcessor(Node):
    spec = NodeSpec(
        id="MusubiTuner_BatchProcessor",
        display_name="Batch Processor",
        category="MusubiTuner/Video",
        description=f"Generate {_MADE} for each of many prompts. The models are loaded once for all, once per GPU where there are several. "
        "Results go to ComfyUI's output folder; prompts that fail are reported and the others continue.",
        inputs=(
            Input("models", MODELS, "From any Model Paths node"),
            Input(
                "prompts",
                "STRING",
                "One prompt per line; # begins a comment. A line may end in settings of its own: --w --h size, --f frames "
                f"({_IN_SECONDS}: seconds), --d seed, --s steps, --g guidance, --fs flow shift, --n negative prompt, "
                "--i first frame, --ei last frame.",
                default="",
                multiline=True,
            ),
            Input(
                "prompt_file",
                "STRING",
                "A text file with further prompts, one per line. Relative paths start in ComfyUI's input folder, or else in this pack's "
                "home folder.",
                default="",
            ),
            shared_widget(GENERATE, "negative_prompt", multiline=True),
            *size_inputs(),
            Input("video_length", "INT", "Frames, 4n+1. 0: what the model is made for.", default=0, minimum=0, maximum=10000, step=1),
            Input("fps", "INT", "Frames per second the files play at. 0: the model's own.", default=0, minimum=0, maximum=240),
            shared_widget(GENERATE, "infer_steps", off=0),
            shared_widget(GENERATE, "guidance_scale", off=-1.0),
            shared_widget(GENERATE, "flow_shift", off=0.0),
            shared_widget(
                GENERATE,
                "seed",
                0,
                maximum=SEEDS - 1,
                option="",
                tooltip="Seed of the first prompt; each further one gets the next number. A line's own --d wins.",
            ),
            *loras.inputs(4),
            shared_widget(GENERATE, "attn_mode", "sdpa", choices=ATTENTION, advanced=True),
            device_input(any_tool(GENERATE)),
            Input("gpus", "INT", "How many GPUs share the work. 0: all there are.", default=0, minimum=0, maximum=64),
            Input(
                "filename_prefix",
                "STRING",
                "Beginning of the file names in ComfyUI's output folder; may start with folders.",
                default="musubi_tuner/batch",
            ),
            *media_inputs.sockets_and_paths(SOURCES),
            shared_widget(GENERATE, "fp8"),
            shared_widget(GENERATE, "fp8_scaled"),
            shared_widget(GENERATE, "blocks_to_swap", off=0),
            shared_widget(GENERATE, "use_pinned_memory_for_block_swap"),
            shared_widget(GENERATE, "compile"),
            shared_widget(GENERATE, "offload_inactive_dit"),
            *experts.lora_inputs(),
            Input("prompt_list", ANY, "Prompts from other nodes: a text of lines, or a list of texts", optional=True, many=True),
            shared_widget(GENERATE, "skip_mismatched"),
        ),
        outputs=(
            Output("videos", "VIDEO", "The videos, in the order of the prompts", many=True),
            Output("paths", "STRING", "Their files", many=True),
            Output("report", "STRING", "Which prompt became which file, and which failed and why"),
            Output("images", "IMAGE", "The images of models that make images, in the order of the prompts", many=True),
        ),
        is_output=True,
    )

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        if "filename_prefix" in constants:
            yield from refused("filename_prefix", output_prefix, host, constants["filename_prefix"])
        yield from media_inputs.problems(host, SOURCES, constants)
        yield from refused("prompts", _lines, host, constants.get("prompts", ""), "", None)
        yield from refused("prompt_file", _lines, host, "", constants.get("prompt_file", ""), None)
        yield from (*length_problems(constants, STRIDE), *size_problems(constants))

    def fingerprint(self, host: Host, **constants: Any) -> str:
        chosen = [*loras.files(host, constants)[0], *loras.files(host, constants, experts.PREFIX)[0]]
        files = [*chosen, *media_inputs.stamps(host, SOURCES, constants)]
        if constants.get("prompt_file", "").strip():
            files.append(_prompt_file(host, constants["prompt_file"]))
        return f"{engine_stamp(host.home)} {content.of_files(files)}"

    async def run(self, host: Host, **inputs: Any) -> Result:
        lines = _lines(host, inputs["prompts"], inputs["prompt_file"], inputs["prompt_list"])
        if not lines:
            raise UserError("there are no prompts: write some into prompts, one per line, or name a prompt_file")
        prefix = output_prefix(host, inputs["filename_prefix"])
        place.try_file(prefix.with_name(f"{prefix.name}_00000.mp4"), "filename_prefix")
        prompts = [Prompt(number, *seeded(line, inputs["seed"] + number - 1)) for number, line in enumerate(lines, start=1)]
        card = card_of(inputs["models"])
        try:
            await prompt_batch.run(host, self.spec, inputs, prompts)
        except BaseException:  # each host has its own interrupt
            _keep_finished(host, prompts, prefix, card.makes)
            raise
        return _publish(host, prompts, prefix, card.makes)


def _lines(host: Host, text: str, file: str, listed: Any) -> list[str]:
    """All prompt lines, their paths checked. UserError names the line that is wrong."""
    blocks = [("prompts", text)]
    if file.strip():
        path = _prompt_file(host, file)
        try:
            blocks.append((path.name, path.read_text(encoding="utf-8-sig")))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"prompt_file: {path} cannot be read ({error}); it must be UTF-8 text") from error
    blocks += [("prompt_list", block) for block in _texts(listed)]
    return [line for name, block in blocks for line in lines_of(host, block, name)]


def _prompt_file(host: Host, text: str) -> Path:
    path = guard.inside(text, host.allowed_roots(), "prompt_file", relative_to=(host.input_dir, host.home))
    if not path.is_file():
        raise UserError(f"prompt_file: {path} is not a file")
    return path


def _texts(value: Any) -> list[str]:
    """The texts in what a socket gave, however deep it is nested in lists. UserError for anything else."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    raise UserError(f"prompt_list: expected texts, found {type(value).__name__}")


def _keep_finished(host: Host, prompts: Sequence[Prompt], prefix: Path, makes: str) -> None:
    """What was made before a stop goes to the output folder too, and is said."""
    finished = [prompt for prompt in prompts if prompt.result is not None]
    if finished:
        paths = _publish(host, finished, prefix, makes).values[1]
        names = ", ".join(Path(path).name for path in paths)
        host.progress(1, 1, f"stopped; {_made(len(paths), prompts, makes)}: {names}")


def _made(count: int, prompts: Sequence[Prompt], makes: str) -> str:
    return f"{count} of {counted(len(prompts), 'prompt')} made {_ONE[makes]}"


def _publish(host: Host, prompts: Sequence[Prompt], prefix: Path, makes: str) -> Result:
    """Move the results to the output folder. makes: what the model generates. UserError if there are none at all."""
    report, paths = [], []
    for prompt in prompts:
        if prompt.result is not None:
            target = next_path(prefix, prompt.result.suffix)
            try:
                with replacing(target) as part:
                    shutil.copyfile(prompt.result, part)
            except OSError as error:
                raise UserError(
                    f"{target} could not be written: {place.reason(error)}; finished {makes.lower()}s are in {prompt.result.parent}"
                ) from error
            prompt.result.unlink()
            paths.append(target)
            report.append(f"{prompt.number}. {target.name}: {prompt.line}")
        else:
            report.append(f"{prompt.number}. FAILED: {prompt.line}\n   {prompt.problem}")
    failed = len(prompts) - len(paths)
    text = "\n".join([_made(len(paths), prompts, makes) + (f", {failed} failed" if failed else ""), *report])
    if not paths:
        raise UserError(f"no prompt made {_ONE[makes]}.\n{text}")
    videos, images = ([], [host.frames(path) for path in paths]) if makes == IMAGE else ([host.video(path) for path in paths], [])
    values = (videos, [str(path) for path in paths], text, images)
    return Result(values, text=text, shown=tuple(paths), files=tuple(paths))
