"""Many prompts with the settings of one node: lines checked, shared out over the GPUs, run, each given its file or the reason why not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.architectures.card import Card
from ..backend.musubi_backend.architectures.widgets import END, START
from ..backend.musubi_backend.atomic import write_text
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import GENERATE
from ..backend.musubi_backend.options.registry import tool_names
from . import experts, loras, media_inputs
from .generate import metadata_values, results
from .jobs import config as configuration
from .jobs import guard
from .jobs.engine import refuse_own
from .jobs.errors import read_tail
from .jobs.folder import JobFolder
from .jobs.follow import run_on_gpus
from .jobs.runner import Job
from .jobs.wording import in_widgets
from .media_inputs import SECTIONS
from .models import card_of, model_values
from .spec import Host, NodeSpec
from .widgets import applicable

SOURCES = (START, END)
SEEDS = 2**32
_PATHS = ("i", "ei", "cn", "ci", "cim", "lw", "lwh")  # options of a prompt line that name files
_LORAS = (" --lw ", " --lwh ")  # which only our backend has
_CRASHES = 2
STRIDE = math.gcd(*(card.frame_stride for card in cards().values()))
"""Of the frames of a video: what holds for every model."""
ATTENTION = ("sdpa", "torch", "flash", "sageattn", "xformers")
"""What all architectures have."""


@dataclass
class Prompt:
    """One line of the batch. number: its place, from 1; seed: what it runs with; result: its file, once made; problem: why not; open: its
    process died, which may be another prompt's fault."""

    number: int
    line: str
    seed: int
    result: Path | None = None
    problem: str = ""
    open: bool = False


async def run(host: Host, spec: NodeSpec, inputs: dict[str, Any], prompts: Sequence[Prompt]) -> None:
    """Generate all prompts with the settings of a node's inputs; afterwards each has its file, or the reason why not. When the host
    interrupts, those that are finished have theirs."""
    tool = tool_names(card_of(inputs["models"]))[GENERATE]
    settings = configuration.load(host.home)
    refuse_own(settings, tool, ["from_file"])
    if settings.engine != "builtin" and any(option in prompt.line for prompt in prompts for option in _LORAS):
        raise UserError("a LoRA of one prompt alone: musubi-tuner has no such thing; choose the engine builtin")
    places = _gpus(host, inputs, len(prompts))
    for shares in _rounds(prompts, len(places)):
        jobs = [_job(host, spec, inputs, share, tool) for share in shares]
        try:
            ended = await run_on_gpus(host, tool, [(folder, argv, gpu) for (folder, argv), gpu in zip(jobs, places, strict=False)])
        except BaseException:  # each host has its own interrupt
            for share, (folder, _) in zip(shares, jobs, strict=True):
                _take(share, results(folder.path / "results"))
            raise
        for share, job in zip(shares, ended, strict=True):
            _settle(tool, share, job)


def _job(host: Host, spec: NodeSpec, inputs: dict[str, Any], share: Sequence[Prompt], tool: str) -> tuple[JobFolder, list[str]]:
    """A job folder with the prompts of one process, and its arguments."""
    folder = JobFolder.create(host.home, tool)
    write_text(_prompts_of(folder), "".join(f"{prompt.line}\n" for prompt in share))
    chosen = {
        **values(spec, host, inputs),
        **media_inputs.values(host, SOURCES, inputs, folder.path / "inputs"),
        "from_file": str(_prompts_of(folder)),
        "save_path": str(folder.path / "results"),
    }
    return folder, to_argv(tool, chosen)


def values(spec: NodeSpec, host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
    """option name -> value that all prompts share, without images and where it reads and writes."""
    card = card_of(inputs["models"])
    tool = tool_names(card)[GENERATE]
    return {
        **model_values(card, inputs["models"], tool),
        "video_size": [inputs["height"], inputs["width"]],
        "fps": inputs["fps"] or card.fps,
        **_length(card, inputs["video_length"]),
        **applicable(spec.inputs, inputs, tool, card.title),
        **loras.options(host, inputs),
        **_high_noise_loras(host, card, inputs),
        **metadata_values(host),
    }


def _high_noise_loras(host: Host, card: Card, inputs: dict[str, Any]) -> dict[str, Any]:
    """The LoRAs of the high-noise expert. UserError where the models have none."""
    chosen = experts.lora_values(host, inputs)
    if chosen and (card.expert is None or card.expert.name not in inputs["models"]):
        raise UserError(f"high_lora_1 and high_lora_2 are for the high-noise model of {experts.titles()}, and these models have none")
    return chosen


def _length(card: Card, frames: int) -> dict[str, Any]:
    """The option that says how long the videos are."""
    if not frames:
        return {}
    return {"video_seconds": frames / card.fps} if card.length_in_seconds else {"video_length": frames}


def _gpus(host: Host, inputs: dict[str, Any], prompts: int) -> list[str | None]:
    """One name per process: of the GPUs to use, or None where the process finds its device itself."""
    found = host.gpus() if inputs["gpus"] != 1 and inputs["device"] not in ("cpu",) else []
    chosen = found[: inputs["gpus"] or len(found)][:prompts]
    return list(chosen) if len(chosen) > 1 else [None]


def _prompts_of(folder: JobFolder) -> Path:
    return folder.path / "prompts.txt"


def lines_of(host: Host, text: str, where: str) -> list[str]:
    """The prompts in a text, one per line, without comments, their paths checked. UserError names the line that is wrong."""
    lines = enumerate(text.splitlines(), start=1)
    return [
        guarded(host, line.strip(), f"{where}, line {number}")
        for number, line in lines
        if line.strip() and not line.lstrip().startswith("#")
    ]


def guarded(host: Host, line: str, where: str) -> str:
    """The line with whole paths in its options. UserError where it begins with an option or a path is not allowed."""
    if line.startswith("--"):
        raise UserError(f"{where}: begins with an option; write the prompt first, then its options")
    prompt, *options = line.split(" --")
    for index, option in enumerate(options):
        name, _, value = option.strip().partition(" ")
        if name.lower() in _PATHS:
            options[index] = f"{name} {_guarded_paths(host, value, f'{where}: --{name}')}"
    return " --".join([prompt, *options])


def _guarded_paths(host: Host, value: str, where: str) -> str:
    parts = []
    for part in value.split(SECTIONS):
        label = re.match(r"\s*-?\d+(-\d+)?\s*:", part)
        path = part[label.end() :] if label else part
        checked = guard.inside(path, host.allowed_roots(), where, relative_to=(host.input_dir, host.home))
        parts.append(f"{label[0].strip() if label else ''}{checked}")
    return SECTIONS.join(parts)


def seeded(line: str, seed: int) -> tuple[str, int]:
    """The line with a seed, its own or the given one, and that seed: results are distinguished by it."""
    own = re.findall(r" --d\s+(\d+)", line, re.IGNORECASE)
    return (line, int(own[-1])) if own else (f"{line} --d {seed % SEEDS}", seed % SEEDS)


def _rounds(prompts: Sequence[Prompt], processes: int) -> Iterator[list[Sequence[Prompt]]]:
    """What to run at the same time, as prompts of each process: first all prompts, shared out. Prompts that are still open then, because
    their process was killed or crashed, get a process each, so that one that is too large takes no other with it; after
    `_CRASHES` such in a row it is given up."""
    yield [prompts[start::processes] for start in range(processes)]
    crashed: list[Prompt] = []
    for prompt in prompts:
        if prompt.open and len(crashed) < _CRASHES:
            prompt.problem = ""
            yield [[prompt]]
            crashed = [*crashed, prompt] if prompt.open else []


def _settle(tool: str, share: Sequence[Prompt], job: Job) -> None:
    """Give each prompt of a job its file, in order among those of the same seed, or the reason why it has none."""
    ended_itself = job.returncode in (0, 1)
    problems = _problems(job)
    _take([prompt for number, prompt in enumerate(share, start=1) if number not in problems], results(job.folder.path / "results"))
    for number, prompt in enumerate(share, start=1):
        if prompt.result is None:
            ended = in_widgets(tool, job.error()) if job.returncode else f"no file was written. The whole log: {job.folder.log}"
            prompt.problem = problems.get(number, ended)
            prompt.open = number not in problems and not ended_itself


def _take(share: Sequence[Prompt], made: list[Path]) -> None:
    """Give each prompt its file, if there is one."""
    for prompt in share:
        files = [path for path in made if re.search(rf"_{prompt.seed}(_000)?$", path.stem)]
        if files:
            prompt.result, prompt.open = files[0], False
            made.remove(files[0])


def _problems(job: Job) -> dict[int, str]:
    """Number of a line in the job's prompt file -> what its log says went wrong with it."""
    pattern = re.compile(re.escape(str(_prompts_of(job.folder))) + r" line (\d+): (.+)")
    return {int(match[1]): match[2] for match in pattern.finditer(read_tail(job.folder.log))}
