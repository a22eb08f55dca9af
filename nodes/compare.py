"""Which checkpoint is best: each at some strengths on the same prompts and seed, with the models loaded once, as a labelled grid."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backend.musubi_backend import content, events, place
from ..backend.musubi_backend.architectures.card import Card
from ..backend.musubi_backend.counted import counted
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.inference.side_by_side import grid
from ..backend.musubi_backend.inference.video_file import read_images, write_mp4
from ..backend.musubi_backend.options.option import GENERATE
from . import experts, loras, media_inputs, prompt_batch
from .checkpoints import Checkpoint, choices, find, named, spread
from .families import any_tool, shared_widget
from .generate import device_input, fresh_folder, size_inputs
from .jobs.config import engine_stamp
from .jobs.folder import JOBS, JobFolder
from .jobs.index import index_of
from .models import MODELS, card_of
from .prompt_batch import ATTENTION, SEEDS, SOURCES, STRIDE, Prompt, lines_of, seeded
from .runs import JOB
from .sizes import length_problems, size_problems
from .spec import Host, Input, Node, NodeSpec, Output, Problem, Result, refused
from .widgets import NONE

if TYPE_CHECKING:
    import numpy as np

_MOST = 100  # videos
_CAPTION = 90  # characters
WITHOUT = "without LoRA"


@dataclass
class Cell:
    """One video of the grid. checkpoint None: without a LoRA, which is made once for all strengths."""

    checkpoint: Checkpoint | None
    strength: float
    text: str
    prompt: Prompt


class CompareCheckpoints(Node):
    spec = NodeSpec(
        id="MusubiTuner_CompareCheckpoints",
        display_name="Compare Checkpoints",
        category="MusubiTuner/Monitor",
        description="See which checkpoint of a training is best, and how strong: all of them on the same prompts with the same seed, the "
        "models loaded once. A labelled grid, and the videos in the gallery of the training.",
        inputs=(
            Input("models", MODELS, "From any Model Paths node"),
            Input("prompts", "STRING", "One prompt per line, in the words of your captions. A line may end in settings of its own, as in "
                "Batch Processor.", default="", multiline=True),
            Input("checkpoints", "STRING", "Which checkpoints: the output name of a training of this pack, a folder, or files (one per "
                "line, oldest first). Empty: those of the connected job.", default="", multiline=True),
            Input("training", "COMBO", "One of your trainings, the newest first: its checkpoints. Instead of `checkpoints`.",
                  default=NONE, choices=choices, off=NONE),
            Input("at_most", "INT", "How many checkpoints at most: evenly spread over the training, always with the last.",
                  default=4, minimum=1, maximum=32),
            Input("strengths", "STRING", "How strong each is: one number, or several for a row each: 0.7, 1.0", default="1.0"),
            Input("without_lora", "BOOLEAN", "Also without a LoRA, to see what it changes.", default=True),
            Input("seed", "INT", "Seed of all videos. A prompt's own --d wins.", default=0, minimum=0, maximum=SEEDS - 1),
            *size_inputs(),
            Input("video_length", "INT", "Frames, 4n+1. 0: what the model is made for.", default=0, minimum=0, maximum=10000, step=1),
            Input("cell_height", "INT", "Height of each video in the grid, in pixels. The videos themselves keep their size.",
                  default=320, minimum=64, maximum=2048),
            Input("fps", "INT", "Frames per second the files play at. 0: the model's own.", default=0, minimum=0, maximum=240,
                  advanced=True),
            shared_widget(GENERATE, "negative_prompt", multiline=True, advanced=True),
            shared_widget(GENERATE, "infer_steps", off=0),
            shared_widget(GENERATE, "guidance_scale", off=-1.0, advanced=True),
            shared_widget(GENERATE, "flow_shift", off=0.0, advanced=True),
            *loras.inputs(2, "", " to all of them, such as one for fewer steps", hidden=True),
            shared_widget(GENERATE, "attn_mode", "sdpa", choices=ATTENTION, advanced=True),
            device_input(any_tool(GENERATE)),
            Input("gpus", "INT", "How many GPUs share the work. 0: all there are.", default=0, minimum=0, maximum=64, advanced=True),
            *media_inputs.sockets_and_paths(SOURCES),
            shared_widget(GENERATE, "fp8", advanced=True),
            shared_widget(GENERATE, "fp8_scaled", advanced=True),
            shared_widget(GENERATE, "blocks_to_swap", off=0, advanced=True),
            shared_widget(GENERATE, "use_pinned_memory_for_block_swap", advanced=True),
            shared_widget(GENERATE, "offload_inactive_dit", advanced=True),
            Input("job", JOB, "From a trainer: its checkpoints", optional=True),
        ),
        outputs=(
            Output("grid", "IMAGE", "The middle of each video, labelled: a column for each checkpoint, a row for each prompt and strength"),
            Output("video", "VIDEO", "The same, all playing side by side"),
            Output("report", "STRING", "Which file is which, and which failed and why"),
        ),
        is_output=True,
    )  # fmt: skip

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        yield from refused("checkpoints", named, constants)
        if constants.get("checkpoints", "").strip():
            yield from refused("checkpoints", find, host, constants["checkpoints"])
        yield from refused("strengths", _strengths, constants.get("strengths", "1"))
        yield from refused("prompts", lines_of, host, constants.get("prompts", ""), "prompts")
        yield from media_inputs.problems(host, SOURCES, constants)
        yield from (*length_problems(constants, STRIDE), *size_problems(constants))

    def fingerprint(self, host: Host, **constants: Any) -> str:
        text = named(constants)
        files = [checkpoint.path for checkpoint in find(host, text)] if text.strip() else []
        files += [*loras.files(host, constants)[0], *media_inputs.stamps(host, SOURCES, constants)]
        return f"{engine_stamp(host.home)} {content.of_files(files)}"

    async def run(self, host: Host, **inputs: Any) -> Result:
        texts = lines_of(host, inputs["prompts"], "prompts")
        if not texts:
            raise UserError("there are no prompts: write some into prompts, one per line")
        run = inputs["job"]["run"] if inputs["job"] else None
        checkpoints = spread(find(host, named(inputs), run), inputs["at_most"])
        strengths = _strengths(inputs["strengths"])
        columns: list[Checkpoint | None] = [*([None] if inputs["without_lora"] else []), *checkpoints]
        cells = list(_cells(columns, strengths, texts, inputs["seed"], card_of(inputs["models"]), inputs["models"]))
        if len(cells) > _MOST:
            raise UserError(f"that would be {len(cells)} videos, and {_MOST} is the most: lower at_most, or fewer strengths or prompts")
        folder = _folder(host, checkpoints)
        try:
            await prompt_batch.run(host, self.spec, inputs, [cell.prompt for cell in cells])
        finally:  # also what was made before a stop
            _keep(cells, folder)
            if not any(folder.iterdir()):
                folder.rmdir()
        if not any(cell.prompt.result for cell in cells):
            raise UserError(f"nothing could be generated.\n{_report(cells, folder)}")
        told = await asyncio.to_thread(_to_gallery, host, cells, folder)
        lines = [(text, strength) for text in texts for strength in strengths]
        captions = [_short(text) + (f"   strength {strength:g}" if len(strengths) > 1 else "") for text, strength in lines]
        rows = [[_at(cells, column, strength, text) for column in columns] for text, strength in lines]
        video, middle = await asyncio.to_thread(_draw, host, rows, captions, [_label(column) for column in columns], inputs["cell_height"])
        still = await asyncio.to_thread(host.images, [middle], video.parent)
        report = "\n".join([_report(cells, folder), told])
        made = tuple(cell.prompt.result for cell in cells if cell.prompt.result is not None)
        failed = f", {len(cells) - len(made)} failed" if len(made) < len(cells) else ""
        line = f"{counted(len(made), 'video')} of {counted(len(checkpoints), 'checkpoint')}{failed}"
        return Result((still, host.video(video), report), text=report, line=line, shown=(video,), files=(video, *made))


def _strengths(text: str) -> list[float]:
    """UserError for what is no list of strengths."""
    try:
        found = list(dict.fromkeys(float(part) for part in text.replace(",", " ").split()))
    except ValueError:
        raise UserError(f"strengths: {text!r} is not a list of numbers such as 0.7, 1.0") from None
    if not found or not all(-100 <= one <= 100 for one in found):
        raise UserError(f"strengths: {text!r}: give one number or several, from -100 to 100, such as 0.7, 1.0")
    return found


def _cells(
    columns: Sequence[Checkpoint | None], strengths: Sequence[float], texts: Sequence[str], seed: int, card: Card, models: Mapping[str, Any]
) -> Iterator[Cell]:
    """Grouped by checkpoint, so that each is read once."""
    number = 0
    for checkpoint in columns:
        for strength in strengths if checkpoint else (0.0,):
            for text in texts:
                number += 1
                line, own = seeded(text, seed)
                lora = "" if checkpoint is None else f"{_files(checkpoint.path, card, models)} --lm {strength!r}"
                yield Cell(checkpoint, strength, text, Prompt(number, f"{line}{lora}", own))


def _files(path: Path, card: Card, models: Mapping[str, Any]) -> str:
    """The options of a prompt line that name a LoRA; of two experts each gets its own where there are two files, else the same."""
    low, high = experts.both(path)
    two = card.expert is not None and models.get(card.expert.name)
    for file in (low, high):
        if " --" in str(file) or "\n" in str(file):
            raise UserError(f"checkpoints: {file} cannot be named in a prompt line: rename it without ' --'")
    return f" --lw {low}" + (f" --lwh {high}" if two else "")


def _folder(host: Host, checkpoints: Sequence[Checkpoint]) -> Path:
    """Where the videos go: into the run that the checkpoints are of, else to ComfyUI's output."""
    run = checkpoints[-1].path.parent
    parent = run / "comparisons" if run.parent == host.home / "runs" else host.output_dir / "musubi_tuner"
    place.try_folder(parent, ["comparison_00000/000_last.mp4"], "the folder for comparisons")
    return fresh_folder(parent, "comparison")


def _keep(cells: Sequence[Cell], folder: Path) -> None:
    """Move what was made there, under names that say what it is."""
    for cell in cells:
        made = cell.prompt.result
        if made is not None and made.parent != folder:
            name = "without" if cell.checkpoint is None else f"{cell.checkpoint.label}_{cell.strength:g}"
            cell.prompt.result = Path(shutil.move(made, folder / f"{cell.prompt.number:03d}_{name}{made.suffix}"))


def _to_gallery(host: Host, cells: Sequence[Cell], folder: Path) -> str:
    """Add the videos to the samples of the newest job of their run. Returns what to say of it."""
    run = folder.parent.parent
    job = next((job["id"] for job in index_of(host.home).jobs() if job["run"] == run.name and job["kind"] == "training"), None)
    if run.parent != host.home / "runs" or job is None:
        return f"The videos are in {folder}"
    for cell in cells:
        if cell.prompt.result is not None:
            label = cell.text if cell.checkpoint is None else f"{cell.text} (strength {cell.strength:g})"
            step = 0 if cell.checkpoint is None else cell.checkpoint.step
            JobFolder(host.home / JOBS / job).tell(events.Sample(str(cell.prompt.result), step, label))
    return f"The videos are in the gallery of {run.name} and in {folder}"


def _at(cells: Sequence[Cell], column: Checkpoint | None, strength: float, text: str) -> Path | None:
    wanted = (column, 0.0 if column is None else strength, text)
    return next(cell.prompt.result for cell in cells if (cell.checkpoint, cell.strength, cell.text) == wanted)


def _draw(
    host: Host, rows: Sequence[Sequence[Path | None]], captions: Sequence[str], titles: Sequence[str], height: int
) -> tuple[Path, np.ndarray]:
    """The grid as a video in the temporary folder, and its image in the middle."""
    import numpy as np

    shown = {path: _small(path, height) for row in rows for path in row if path is not None}
    some, rate = next(iter(shown.values()))
    missing = [np.zeros_like(some[0])]
    videos = [[missing if path is None else shown[path][0] for path in row] for row in rows]
    images = list(grid(videos, captions, titles, height))
    name = content.digest([content.stamp(path) for path in shown], list(captions), list(titles), height)
    path = write_mp4(host.temp_dir / "musubi_tuner" / f"comparison_{name}" / "video.mp4", images, rate)
    return path, images[len(images) // 2]


def _small(path: Path, height: int) -> tuple[list[np.ndarray], Fraction]:
    """The images of a video, no larger than they are shown."""
    import numpy as np
    from PIL import Image

    images, rate = read_images(path)
    size = (max(1, round(images[0].shape[1] * height / images[0].shape[0])), height)
    return [np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in images], rate


def _label(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return WITHOUT
    return checkpoint.path.stem if checkpoint.number is None else f"{checkpoint.counts} {checkpoint.number}"


def _short(text: str) -> str:
    return text if len(text) <= _CAPTION else f"{text[: _CAPTION - 1]}…"


def _report(cells: Sequence[Cell], folder: Path) -> str:
    lines = []
    for cell in cells:
        what = _label(cell.checkpoint) + (f", strength {cell.strength:g}" if cell.checkpoint else "")
        made = os.path.basename(cell.prompt.result) if cell.prompt.result else f"FAILED: {cell.prompt.problem or 'not made'}"  # noqa: PTH119
        lines.append(f"{what}: {cell.text}\n   {made}")
    return "\n".join(lines)
