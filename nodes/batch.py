"""Many prompts in one go: the models are loaded once per GPU, prompts that fail are reported and the others continue."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend.musubi_backend import content, place
from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.architectures.card import IMAGE, VIDEO, Card
from ..backend.musubi_backend.architectures.widgets import END, START
from ..backend.musubi_backend.atomic import replacing, write_text
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import GENERATE
from ..backend.musubi_backend.options.registry import tool_names
from . import experts, loras, media_inputs
from .families import any_tool, shared_widget, titles
from .generate import device_input, metadata_values, results, size_inputs
from .jobs import config as configuration
from .jobs import guard
from .jobs.config import engine_stamp
from .jobs.engine import refuse_own
from .jobs.errors import read_tail
from .jobs.folder import JobFolder
from .jobs.follow import run_on_gpus
from .jobs.runner import Job
from .jobs.wording import in_widgets
from .media_inputs import SECTIONS
from .models import MODELS, card_of, model_values
from .sizes import length_problems, size_problems
from .spec import ANY, Host, Input, Node, NodeSpec, Output, Problem, Result, refused
from .video import next_path, output_prefix
from .widgets import applicable

_PATHS = ("i", "ei", "cn", "ci", "cim")  # options of a prompt line that name files
_SEEDS = 2**32
_IN_SECONDS = titles(card for card in cards().values() if card.length_in_seconds)
_ATTENTION = ("sdpa", "torch", "flash", "sageattn", "xformers")  # what all architectures have
_SOURCES = (START, END)
_ONE = {VIDEO: "a video", IMAGE: "an image"}
_MADE = " or ".join(dict.fromkeys(_ONE[card.makes] for card in cards().values()))
_CRASHES = 2
_STRIDE = math.gcd(*(card.frame_stride for card in cards().values()))  # what holds for every model


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
                maximum=_SEEDS - 1,
                option="",
                tooltip="Seed of the first prompt; each further one gets the next number. A line's own --d wins.",
            ),
            *loras.inputs(4),
            shared_widget(GENERATE, "attn_mode", "sdpa", choices=_ATTENTION, advanced=True),
            device_input(any_tool(GENERATE)),
            Input("gpus", "INT", "How many GPUs share the work. 0: all there are.", default=0, minimum=0, maximum=64),
            Input(
                "filename_prefix",
                "STRING",
                "Beginning of the file names in ComfyUI's output folder; may start with folders.",
                default="musubi_tuner/batch",
            ),
            *media_inputs.sockets_and_paths(_SOURCES),
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
        yield from media_inputs.problems(host, _SOURCES, constants)
        yield from refused("prompts", _lines, host, constants.get("prompts", ""), "", None)
        yield from refused("prompt_file", _lines, host, "", constants.get("prompt_file", ""), None)
        yield from (*length_problems(constants, _STRIDE), *size_problems(constants))

    def fingerprint(self, host: Host, **constants: Any) -> str:
        chosen = [*loras.files(host, constants)[0], *loras.files(host, constants, experts.PREFIX)[0]]
        files = [*chosen, *media_inputs.stamps(host, _SOURCES, constants)]
        if constants.get("prompt_file", "").strip():
            files.append(_prompt_file(host, constants["prompt_file"]))
        return f"{engine_stamp(host.home)} {content.of_files(files)}"

    async def run(self, host: Host, **inputs: Any) -> Result:
        lines = _lines(host, inputs["prompts"], inputs["prompt_file"], inputs["prompt_list"])
        if not lines:
            raise UserError("there are no prompts: write some into prompts, one per line, or name a prompt_file")
        prefix = output_prefix(host, inputs["filename_prefix"])
        place.try_file(prefix.with_name(f"{prefix.name}_00000.mp4"), "filename_prefix")
        prompts = [Prompt(number, *_seeded(line, inputs["seed"] + number - 1)) for number, line in enumerate(lines, start=1)]
        card = card_of(inputs["models"])
        tool = tool_names(card)[GENERATE]
        refuse_own(configuration.load(host.home), tool, ["from_file"])
        gpus = _gpus(host, inputs, len(prompts))
        for shares in _rounds(prompts, len(gpus)):
            jobs = [self._job(host, inputs, share, tool) for share in shares]
            try:
                ended = await run_on_gpus(host, tool, [(folder, argv, gpu) for (folder, argv), gpu in zip(jobs, gpus, strict=False)])
            except BaseException:  # each host has its own interrupt
                for share, (folder, _) in zip(shares, jobs, strict=True):
                    _take(share, results(folder.path / "results"))
                _keep_finished(host, prompts, prefix, card.makes)
                raise
            for share, job in zip(shares, ended, strict=True):
                _settle(tool, share, job)
        return _publish(host, prompts, prefix, card.makes)

    def _job(self, host: Host, inputs: dict[str, Any], share: Sequence[Prompt], tool: str) -> tuple[JobFolder, list[str]]:
        """A job folder with the prompts of one process, and its arguments."""
        folder = JobFolder.create(host.home, tool)
        write_text(_prompts_of(folder), "".join(f"{prompt.line}\n" for prompt in share))
        chosen = {
            **self.values(host, inputs),
            **media_inputs.values(host, _SOURCES, inputs, folder.path / "inputs"),
            "from_file": str(_prompts_of(folder)),
            "save_path": str(folder.path / "results"),
        }
        return folder, to_argv(tool, chosen)

    def values(self, host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
        """option name -> value that all prompts share, without images and where it reads and writes."""
        card = card_of(inputs["models"])
        tool = tool_names(card)[GENERATE]
        return {
            **model_values(card, inputs["models"], tool),
            "video_size": [inputs["height"], inputs["width"]],
            "fps": inputs["fps"] or card.fps,
            **_length(card, inputs["video_length"]),
            **applicable(self.spec.inputs, inputs, tool, card.title),
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
    lines = []
    for name, block in blocks:
        for number, line in enumerate(block.splitlines(), start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                lines.append(_guarded(host, line.strip(), f"{name}, line {number}"))
    return lines


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


def _guarded(host: Host, line: str, where: str) -> str:
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


def _seeded(line: str, seed: int) -> tuple[str, int]:
    """The line with a seed, its own or the given one, and that seed: results are distinguished by it."""
    own = re.findall(r" --d\s+(\d+)", line, re.IGNORECASE)
    return (line, int(own[-1])) if own else (f"{line} --d {seed % _SEEDS}", seed % _SEEDS)


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


def _keep_finished(host: Host, prompts: Sequence[Prompt], prefix: Path, makes: str) -> None:
    """What was made before a stop goes to the output folder too, and is said."""
    finished = [prompt for prompt in prompts if prompt.result is not None]
    if finished:
        paths = _publish(host, finished, prefix, makes).values[1]
        host.progress(
            1, 1, f"stopped; {len(paths)} of {len(prompts)} prompts made {_ONE[makes]}: {', '.join(Path(path).name for path in paths)}"
        )


def _problems(job: Job) -> dict[int, str]:
    """Number of a line in the job's prompt file -> what its log says went wrong with it."""
    pattern = re.compile(re.escape(str(_prompts_of(job.folder))) + r" line (\d+): (.+)")
    return {int(match[1]): match[2] for match in pattern.finditer(read_tail(job.folder.log))}


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
    text = "\n".join([f"{len(paths)} of {len(prompts)} prompts made {_ONE[makes]}" + (f", {failed} failed" if failed else ""), *report])
    if not paths:
        raise UserError(f"no prompt made {_ONE[makes]}.\n{text}")
    videos, images = ([], [host.frames(path) for path in paths]) if makes == IMAGE else ([host.video(path) for path in paths], [])
    values = (videos, [str(path) for path in paths], text, images)
    return Result(values, text=text, shown=tuple(paths), files=tuple(paths))
