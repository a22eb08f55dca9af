"""`caption_images_by_qwen_vl`: describe the images and clips of a folder with Qwen2.5-VL.

Beyond musubi-tuner's tool: clips, several items at once, and runs that continue where an earlier one ended. Captions that exist are
kept unless --overwrite is given (musubi-tuner always begins anew). What cannot be read is listed and left out.
"""

from __future__ import annotations

import contextlib
import logging
import os
from argparse import Namespace
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from .. import events, job
from ..console import Bar
from ..counted import counted
from ..dataset.media import images_in, videos_in
from ..dataset.problems import Problem, UnusableMedium, listing
from ..device import computed_in, pick_device
from ..errors import UserError
from ..exhausted import out_of_memory
from ..options.tables.captioning import DEFAULT_PROMPT
from ..place import try_file
from .caption_files import Captions, JsonlFile, TextFiles, place
from .settings import CaptionSettings, DescriberSettings, ListSettings

if TYPE_CHECKING:
    from ..encoders.qwen_vl import QwenVL
    from ..encoders.qwen_vl_pixels import Pixels

    Prepared: TypeAlias = "list[tuple[Medium, Pixels | Problem]]"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Medium:
    """One image or clip and the place of its caption."""

    path: Path
    is_video: bool
    captions: Captions


def run(args: Namespace) -> None:
    """Describe what has no caption yet. UserError when the arguments or the model are wrong, or not one item could be described."""
    settings = CaptionSettings.read(args)
    overwrite = settings.listing.overwrite
    media, problems = find_media(settings.listing)
    waiting = [medium for medium in media if overwrite or not medium.captions.has(medium.path)]
    logger.info("found %s, %d with a caption, which is kept", counted(len(media), "item"), len(media) - len(waiting))
    if len(media) > len(waiting) and not overwrite:
        logger.info("captions are there already: --overwrite makes them anew")
    made = 0
    if waiting:
        _try_places([medium.captions.path(medium.path) for medium in waiting])
        describer = Describer(settings.describer)
        with contextlib.closing(_run(describer, waiting, problems)) as described:
            made = sum(1 for _ in described)
    for captions in {id(medium.captions): medium.captions for medium in media}.values():
        captions.close()
    if problems:
        logger.warning("%d left out:\n%s", len(problems), listing(problems, limit=50))
    if waiting and not made:
        raise UserError(f"nothing could be described:\n{listing(problems)}")
    logger.info("%s written, %d kept", counted(made, "caption"), len(media) - len(waiting))
    job.emit(events.Output("captions", count=made))


def _try_places(files: Sequence[Path]) -> None:
    """See that captions can be written into all their folders before the model is loaded. UserError where not."""
    for file in {file.parent: file for file in sorted(files, key=lambda file: len(os.fsencode(file.name)))}.values():
        try_file(file, "captions")


def find_media(settings: ListSettings) -> tuple[list[Medium], list[Problem]]:
    """What is in the folder, sorted by path, and what of it cannot have a caption of its own."""
    folder = Path(settings.image_dir).absolute()
    images = images_in(folder) if settings.media != "videos" else []
    clips = videos_in(folder) if settings.media != "images" else []
    if not images and not clips:
        raise UserError(f"--image_dir: there are no {'images or clips' if settings.media == 'all' else settings.media} in {folder}")
    if settings.output_format == "jsonl":
        file = Path(settings.output_file).absolute()
        videos_file = file.with_name(f"{file.stem}_videos{file.suffix}")
        return [*_listed(images, file, is_video=False), *_listed(clips, videos_file, is_video=True)], []
    texts = TextFiles(settings.caption_extension)
    media, problems, taken = [], [], dict[str, Path]()
    for path, is_video in sorted([*((path, False) for path in images), *((path, True) for path in clips)]):
        first = taken.setdefault(place(texts.path(path)), path)
        if first is path:
            media.append(Medium(path, is_video, texts))
        else:
            problems.append(Problem(path, f"its caption would be in the same file as that of {first.name}; rename one of the two"))
    return media, problems


def _listed(paths: Sequence[Path], file: Path, *, is_video: bool) -> list[Medium]:
    if not paths:
        return []
    captions = JsonlFile(file, "video_path" if is_video else "image_path")
    return [Medium(path, is_video, captions) for path in paths]


def _run(describer: Describer, media: Sequence[Medium], problems: list[Problem]) -> Generator[Path, None, None]:
    """Describe all; yields what was described, its caption safe on disk. StopRequested between two items."""
    job.phase("captions")
    with Bar(len(media), "captions") as bar:
        for ready in _prepared(describer, _batches(media, describer)):
            good = [(medium, pixels) for medium, pixels in ready if not isinstance(pixels, Problem)]
            problems += [pixels for _, pixels in ready if isinstance(pixels, Problem)]
            answers = describer.answers([pixels for _, pixels in good])
            for (medium, _), answer in zip(good, answers, strict=False):
                if isinstance(answer, Unanswered):
                    problems.append(Problem(medium.path, answer.reason))
                    continue
                medium.captions.add(medium.path, answer)
                yield medium.path
            job.leave_if_asked("captions made so far are saved; run it again to continue")
            bar.update(len(ready))


def _batches(media: Sequence[Medium], describer: Describer) -> Iterator[list[Medium]]:
    """Up to `describer.batch_size` images, or clips, at a time; that may become less on the way."""
    for is_video in (False, True):
        alike = [medium for medium in media if medium.is_video == is_video]
        while alike:
            size = describer.batch_size
            yield alike[:size]
            alike = alike[size:]


def _prepared(describer: Describer, batches: Iterable[list[Medium]]) -> Iterator[Prepared]:
    """Every batch with its pixels; the next one is read while the caller works on this one."""
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        waiting: Future[Prepared] | None = None
        for batch in batches:
            coming = pool.submit(describer.prepared, batch)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


@dataclass(frozen=True)
class Unanswered:
    """Why there is no caption for an item that could be read."""

    reason: str


class Describer:
    """The model with the settings of a run."""

    def __init__(self, settings: DescriberSettings) -> None:
        import torch

        from ..encoders.qwen_vl import QwenVL

        self.prompt = (settings.prompt or DEFAULT_PROMPT).replace("\\n", "\n")
        self.largest, self.frames = settings.max_size**2, settings.video_frames
        self.limit, self.batch_size = settings.max_new_tokens, settings.batch_size
        device = pick_device(settings.device)
        dtype = computed_in(torch.bfloat16, device)
        logger.info("Loading Qwen2.5-VL from %s onto %s", settings.model_path, device)
        job.phase("loading Qwen2.5-VL")
        try:
            self.model: QwenVL = QwenVL.load(settings.model_path, device, dtype, fp8=settings.fp8_vl, tokenizer=settings.tokenizer)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                f"the model does not fit into the memory of {device}: close other programs, use the fp8_scaled file or --fp8_vl, "
                "or --device cpu"
            ) from None

    def prepared(self, batch: Sequence[Medium]) -> Prepared:
        return [(medium, self.pixels(medium)) for medium in batch]

    def pixels(self, medium: Medium) -> Pixels | Problem:
        """What the model will see of a medium, or why it cannot be used."""
        from .caption_media import clip_pixels, image_pixels

        try:
            if medium.is_video:
                return clip_pixels(medium.path, self.frames, self.largest)
            return image_pixels(medium.path, self.largest)
        except UnusableMedium as unusable:
            return unusable.problem

    def answers(self, media: Sequence[Pixels]) -> list[str | Unanswered]:
        """A caption each; none when a stop was asked for. A batch that needs too much memory is halved, down to single items."""
        from ..device import release

        if not media:
            return []
        try:
            found = self.model.describe(media, self.prompt, self.limit, job.stop_requested)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            found = None  # outside of this block, where the error's frames no longer hold tensors
        if found is not None:
            return [] if job.stop_requested() else [answer or Unanswered("the model's answer was empty") for answer in found]
        release(self.model.device)
        if len(media) == 1:
            return [Unanswered("out of memory: use a smaller --max_size, fewer --video_frames, or --fp8_vl")]
        self.batch_size = half = (len(media) + 1) // 2
        logger.warning("out of memory with %d items at once: continuing with %d, as --batch_size %d would have", len(media), half, half)
        return [*self.answers(media[:half]), *self.answers(media[half:])]
