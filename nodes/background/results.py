"""What a training in the background begins with, and what becomes of its LoRA: the same as for a node, without ComfyUI."""

from __future__ import annotations

import logging
from pathlib import Path

from ...backend.musubi_backend import content
from ...backend.musubi_backend.architectures import cards
from ...backend.musubi_backend.errors import UserError
from ...backend.musubi_backend.options.option import LORA_CONVERT
from ...backend.musubi_backend.options.registry import tools
from ...backend.musubi_backend.place import in_words
from ..jobs import config as configuration
from ..jobs import engine, runner
from ..jobs.folder import JobFolder
from ..jobs.history import LOSS, History
from ..jobs.progress import EventFollower, Progress
from ..jobs.task import AUTO, NEVER, Task, Training
from ..publishing import conversion, publish
from ..runs import Run

logger = logging.getLogger(__name__)


def run_of(home: Path, training: Training) -> Run:
    """The run that a training belongs to."""
    return Run(home / "runs" / training.run, training.name, tuple(training.endings))


def state_of(home: Path, task: Task) -> Path | None:
    """The state that a training continues from, or None. Reads the states of its run."""
    training = task.training
    for wanted in training.resume if training else ():
        if wanted == AUTO and training is not None:
            found, _ = run_of(home, training).state_to_continue(training.lengths)
            if found is not None:
                return found.folder
        elif wanted not in (AUTO, NEVER):
            return Path(wanted)
    return None


async def settle(home: Path, folder: JobFolder, task: Task, *, finished: bool) -> None:
    """Note the losses of a training that has ended, and put its LoRAs, if it is finished, where ComfyUI offers them. What is wrong with
    that goes into the log of the job."""
    training = task.training
    if training is None:
        return
    run, history = run_of(home, training), History(folder, foreign=configuration.load(home).engine != runner.BUILTIN)
    history.read_on()
    losses, said = history.series[LOSS], []
    try:
        run.add_losses(dict(zip(losses.steps, losses.values, strict=True)))
    except OSError as error:
        said.append(f"ERROR: the losses could not be noted: {in_words(error)}")
    if finished:
        said += await _published(home, folder, task, training, run)
    with folder.log.open("a", encoding="utf-8") as log:
        log.writelines(f"{line}\n" for line in said)


async def _published(home: Path, folder: JobFolder, task: Task, training: Training, run: Run) -> list[str]:
    """What is to be said of the LoRAs of a finished training."""
    said = []
    try:
        missing = [str(lora) for lora in run.loras if not lora.is_file()]
        if missing:
            raise UserError(f"it ended without writing {' and '.join(missing)}")
        key = content.digest(training.results)
        try:
            run.finish(key, str(folder.path), _warnings(folder))
        except OSError as error:
            said.append(f"ERROR: {run.name} is not kept for later: {in_words(error)}")
        for lora, ending in zip(run.made(key), run.endings, strict=True):
            _, path, renamed = publish(await for_comfyui(home, task.tool, lora), Path(training.loras_dir), f"{run.name}{ending}")
            said += [f"The LoRA is {path}", *([renamed] if renamed else [])]
    except (UserError, OSError) as error:
        said.append(f"ERROR: {error}")
    return said


def _warnings(folder: JobFolder) -> list[str]:
    """What the trainer warned of, which the node shows when it hands out the LoRA."""
    progress = Progress()
    if folder.metrics.is_file():
        EventFollower(progress, keep_losses=False).feed(folder.metrics.read_bytes())
    return progress.warnings


async def for_comfyui(home: Path, tool: str, lora: Path) -> Path:
    """A LoRA as ComfyUI's own loader takes it: itself, or where ComfyUI has other names for its layers, converted. tool: the trainer."""
    architecture = tools()[tool].architecture
    todo = conversion(cards()[architecture], lora) if architecture else None
    if todo is None:
        return lora
    converted, argv = todo
    if argv:
        folder = JobFolder.create(home, LORA_CONVERT)
        command = engine.command(configuration.load(home), folder, Task(LORA_CONVERT, tuple(argv), foreign=False))
        job = await runner.start(folder, command)
        await runner.wait(job)
        if job.returncode != 0:
            raise UserError(f"the LoRA could not be converted for ComfyUI: {job.error()}")
    return converted
