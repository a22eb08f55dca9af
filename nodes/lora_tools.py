"""Nodes that make LoRA files of LoRA files: averaged, converted, merged, extracted. The work is the backend's tools'."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..backend.musubi_backend import content
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.lora.ema_schedule import averaged_name, linear_betas, power_betas
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import LORA_COMBINE, LORA_CONVERT, LORA_EMA, LORA_EXTRACT, LORA_MERGE
from ..backend.musubi_backend.place import try_file
from . import loras
from .checkpoints import Checkpoint, between, choices, find, named
from .ema_chart import draw
from .jobs import guard
from .jobs.config import engine_stamp
from .jobs.follow import run_tool
from .publishing import LORA_SUBFOLDER, listed, made_beside, place
from .runs import JOB
from .spec import ANY, Host, Input, Node, NodeSpec, Output, Problem, Result, refused
from .split_models import all_files
from .widgets import NONE, UNSET, applicable, folder, settings, widget

CATEGORY = "MusubiTuner/LoRA"
MODELS = "diffusion_models"
BETA, BETAS, POWER = "beta", "beta to beta2", "sigma_rel"
AS_SET = "as set below"

# seed tables: what is recommended after about 30 epochs; ranges as shares of the training
PRESETS: dict[str, dict[str, Any]] = {
    "beta: general": {"method": BETA, "beta": 0.9, "first": 0.5, "last": 1.0},
    "beta: converged early": {"method": BETA, "beta": 0.95, "first": 1 / 3, "last": 1.0},
    "beta: against overfitting": {"method": BETA, "beta": 0.8, "first": 0.5, "last": 5 / 6},
    "sigma_rel: general": {"method": POWER, "sigma_rel": 0.2, "first": 0.0, "last": 1.0},
    "sigma_rel: converged early": {"method": POWER, "sigma_rel": 0.25, "first": 0.0, "last": 1.0},
    "sigma_rel: against overfitting": {"method": POWER, "sigma_rel": 0.15, "first": 0.0, "last": 5 / 6},
}

_LORA_OUTPUTS = (
    Output("lora_name", ANY, "Name for LoraLoaderModelOnly and other loaders"),
    Output("lora_path", "STRING", "The file"),
    Output("lora_model", "LORA_MODEL", "The weights, for core's LoRA model nodes"),
)
_REPORT = Output("report", "STRING", "What was done")


def _name_input(default: str) -> Input:
    return Input("output_name", "STRING", "Name of the result: musubi_tuner/<name>.safetensors in ComfyUI's loras folder. Another file "
                 "of that name stays; the result then gets a hash behind its name.", default=default)  # fmt: skip


class LoRAPostHocEMA(Node):
    spec = NodeSpec(
        id="MusubiTuner_LoRAPostHocEMA",
        display_name="LoRA Post-Hoc EMA",
        category=CATEGORY,
        description="Average the checkpoints of a training into one LoRA, often steadier than the last. Shows how much each one counts.",
        inputs=(
            Input("checkpoints", "STRING", "Which checkpoints: the output name of a training of this pack, a folder, or files (one per "
                "line, oldest first). Empty: those of the connected job.", default="", multiline=True),
            Input("preset", "COMBO", "Recommended settings to begin with; each sets method, strength and range. Against overfitting leaves "
                "the last checkpoints out.", default="sigma_rel: general", choices=(AS_SET, *PRESETS)),
            Input("method", "COMBO", "beta: a fixed decay. beta to beta2: one that changes evenly. sigma_rel: power function EMA, in which "
                "the first checkpoint does not outweigh the others.", default=POWER, choices=(BETA, BETAS, POWER)),
            widget(LORA_EMA, "beta", 0.9),
            widget(LORA_EMA, "beta2", 0.95, minimum=0.0, maximum=1.0),
            widget(LORA_EMA, "sigma_rel", 0.2, minimum=0.001, maximum=0.288, step=0.005),
            Input("first", "FLOAT", "Where in the training to begin: 0 is the first checkpoint, 0.5 the one in the middle.",
                  default=0.0, minimum=0.0, maximum=1.0, step=0.05),
            Input("last", "FLOAT", "Where to end: 1 is the last checkpoint.", default=1.0, minimum=0.0, maximum=1.0, step=0.05),
            _name_input("my_lora_ema"),
            Input("more_sigma_rel", "STRING", "More widths, made in the same pass as files of their own: 0.1, 0.15. Only with sigma_rel.",
                  default="", advanced=True),
            Input("job", JOB, "From a trainer: its checkpoints", optional=True),
            Input("training", "COMBO", "One of your trainings, the newest first: its checkpoints. Instead of `checkpoints`.",
                  default=NONE, choices=choices, off=NONE, optional=True),
        ),
        outputs=(*_LORA_OUTPUTS, Output("schedule", "IMAGE", "The decay and the share of each checkpoint, as an image"), _REPORT),
        is_output=True,
    )  # fmt: skip

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        yield from _name_problems(constants)
        yield from refused("more_sigma_rel", _widths, constants.get("more_sigma_rel", ""))
        yield from refused("checkpoints", named, constants)
        chosen = {**constants, **PRESETS.get(constants.get("preset", ""), {})}
        if constants.get("more_sigma_rel", "").strip() and chosen.get("method", POWER) != POWER:
            yield Problem("more_sigma_rel", f"more_sigma_rel goes with the method {POWER} only; empty it, or choose that method")
        if constants.get("preset") == AS_SET and chosen.get("first", 0.0) >= chosen.get("last", 1.0):
            yield Problem("first", f"first: {chosen['first']:g} must be below last: two or more checkpoints are averaged")
        if constants.get("checkpoints", "").strip():
            yield from refused("checkpoints", find, host, constants["checkpoints"])

    def fingerprint(self, host: Host, **constants: Any) -> str:
        text = named(constants)
        files = [checkpoint.path for checkpoint in find(host, text)] if text.strip() else []
        return f"{engine_stamp(host.home)} {content.of_files(files)}"

    async def run(self, host: Host, **inputs: Any) -> Result:
        chosen = {**inputs, **PRESETS.get(inputs["preset"], {})}
        run = inputs["job"]["run"] if inputs["job"] else None
        used = between(find(host, named(inputs), run), chosen["first"], chosen["last"])
        target = lora_target(host, inputs["output_name"])
        values = {"path": [str(checkpoint.path) for checkpoint in used], "no_sort": True, **_ema_values(chosen)}
        betas = _betas(chosen, len(used) - 1)
        names = [averaged_name(target, width) for width in values["sigma_rels"]] if "sigma_rels" in values else [target]
        with made_beside(target) as new:
            arguments = to_argv(LORA_EMA, {**values, "output_file": str(new)})
            await run_tool(host, LORA_EMA, arguments, foreign="sigma_rels" not in values, gpu=False)
            placed = [await asyncio.to_thread(place, new.with_name(one.name), one) for one in names]
        made = [path for path, _ in placed]
        image = host.temp_dir / "musubi_tuner" / f"{target.stem}_ema_{content.digest(betas)}.png"
        await asyncio.to_thread(_image, image, used, betas, _title(chosen, target.stem))
        report = _lines(_ema_report(used, betas), *made, *(said for _, said in placed))
        name, path, model = _lora_values(host, made[0])
        return Result((name, path, model, host.frames(image), report), text=report, shown=(image,), files=tuple(made))


class LoRAFormatConverter(Node):
    spec = NodeSpec(
        id="MusubiTuner_LoRAFormatConverter",
        display_name="LoRA Format Converter",
        category=CATEGORY,
        description="Write a LoRA, LoHa or LoKr of any program in musubi-tuner's or ComfyUI's layout. The layout it has is recognised.",
        inputs=(
            folder("lora", "loras", "The LoRA to convert; connect the trainer's lora_name to use what it trained."),
            Input("target", "COMBO", "other: dotted names with lora_A and lora_B, as ComfyUI, diffusers and "
                "most programs have them. default: musubi-tuner's.", default="other",
                  choices=("other", "default"), option="target"),
            widget(LORA_CONVERT, "diffusers_prefix"),
            widget(LORA_CONVERT, "architecture"),
            widget(LORA_CONVERT, "names"),
            Input("output_name", "STRING", "Name of the result in ComfyUI's loras folder, under musubi_tuner. Empty: that of the LoRA with "
                "the layout behind it.", default=""),
            widget(LORA_CONVERT, "keep_unknown", advanced=True),
            widget(LORA_CONVERT, "musubi_names", advanced=True),
            widget(LORA_CONVERT, "expert"),
        ),
        outputs=(*_LORA_OUTPUTS, Output("report", "STRING", "What was recognised, what was converted, what was left")),
        is_output=True,
    )  # fmt: skip

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        if constants.get("output_name"):
            yield from _name_problems(constants)

    def fingerprint(self, host: Host, **constants: Any) -> str:
        files = [host.model_path("loras", constants["lora"])] if "lora" in constants else []
        return content.of_files(files)

    async def run(self, host: Host, **inputs: Any) -> Result:
        source = host.model_path("loras", inputs["lora"])
        suffix = {"other": "comfy", "default": "musubi"}[inputs["target"]]
        target = lora_target(host, inputs["output_name"] or f"{source.stem}_{suffix}")
        values = {"input": str(source), **settings(self.spec.inputs, inputs)}
        # musubi-tuner's converter knows two layouts and misnames the layers of one family: ours runs whatever engine is chosen
        path, said, log = await _made(host, LORA_CONVERT, values, "output", target)
        report = _said(log, ("detected:", "converted:", "left:", "names this program"))
        return Result((*_lora_values(host, path), report), text=_lines(report, path, said), files=(path,))


class LoRAMerger(Node):
    spec = NodeSpec(
        id="MusubiTuner_LoRAMerger",
        display_name="LoRA Merger",
        category=CATEGORY,
        description="Merge LoRAs of any layout: into a transformer, which keeps its names and dtype (fp8 too), or into one "
            "LoRA, exactly or of a chosen rank.",
        inputs=(
            folder("model", MODELS, "The transformer to merge into. none: the LoRAs become one LoRA.", empty=NONE),
            *loras.inputs(4),
            widget(LORA_COMBINE, "rank", off=0, minimum=0),
            widget(LORA_COMBINE, "save_precision"),
            widget(LORA_COMBINE, "architecture", advanced=True),
            Input("output_name", "STRING", "Name of the result, without .safetensors: a LoRA goes to loras/musubi_tuner, a transformer "
                "next to the one it was merged into. Another file of that name stays; the result then gets a hash behind its name.",
                  default="my_merge"),
            widget(LORA_MERGE, "skip_mismatched"),
        ),
        outputs=(Output("name", ANY, "Name of the result for loaders"), Output("path", "STRING", "The file"), _REPORT),
        is_output=True,
    )  # fmt: skip

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        yield from _name_problems(constants)

    def fingerprint(self, host: Host, **constants: Any) -> str:
        model = [host.model_path(MODELS, constants["model"])] if loras.is_chosen(constants, "model") else []
        return content.of_files([*all_files(model), *loras.files(host, constants)[0]])

    async def run(self, host: Host, **inputs: Any) -> Result:
        values = loras.options(host, inputs)
        if not values:
            raise UserError("choose at least one LoRA")
        if inputs["model"] != NONE:
            return await self._into_model(host, inputs, values)
        target = lora_target(host, inputs["output_name"])
        chosen = applicable(self.spec.inputs, inputs, LORA_COMBINE, "LoRAs that become one LoRA")
        path, said, log = await _made(host, LORA_COMBINE, {**chosen, **values}, "output", target)
        report = _said(log, ("combined ", "exact", "rank "))
        return Result((listed(path), str(path), report), text=_lines(report, path, said), files=(path,))

    async def _into_model(self, host: Host, inputs: dict[str, Any], values: dict[str, Any]) -> Result:
        base = host.model_path(MODELS, inputs["model"])
        target = base.parent / f"{guard.plain_name(inputs['output_name'], 'output_name')}.safetensors"
        try_file(target, "output_name")
        chosen = applicable(self.spec.inputs, inputs, LORA_MERGE, "merging into a transformer")
        path, said, log = await _made(host, LORA_MERGE, {"dit": str(base), **chosen, **values}, "save_merged_model", target)
        report = _said(log, ("tensors changed", "Warning: not all"))
        name = os.path.join(*Path(inputs["model"]).parent.parts, path.name)  # noqa: PTH118 (a name, written as ComfyUI lists it)
        return Result((name, str(path), report), text=_lines(report, path, said), files=(path,))


class LoRAExtractor(Node):
    spec = NodeSpec(
        id="MusubiTuner_LoRAExtractor",
        display_name="LoRA Extractor",
        category=CATEGORY,
        description="Make a LoRA of the difference of two checkpoints of a transformer, and say how much of it one of that rank can hold.",
        inputs=(
            folder("base", MODELS, "The transformer before it was trained."),
            folder("tuned", MODELS, "The trained one."),
            widget(LORA_EXTRACT, "rank"),
            widget(LORA_EXTRACT, "biases"),
            widget(LORA_EXTRACT, "save_precision"),
            _name_input("my_extract"),
            widget(LORA_EXTRACT, "device", kind="COMBO", choices=(UNSET, "cpu", "cuda"), default=UNSET, off=UNSET, advanced=True),
        ),
        outputs=(*_LORA_OUTPUTS, Output("report", "STRING", "How many layers differ, and how much of the change the LoRA holds")),
        is_output=True,
    )

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        return _name_problems(constants)

    def fingerprint(self, host: Host, **constants: Any) -> str:
        return content.of_files(all_files(host.model_path(MODELS, constants[name]) for name in ("base", "tuned") if name in constants))

    async def run(self, host: Host, **inputs: Any) -> Result:
        target = lora_target(host, inputs["output_name"])
        files = {name: str(host.model_path(MODELS, inputs[name])) for name in ("base", "tuned")}
        values = {**files, **settings(self.spec.inputs, inputs)}
        path, said, log = await _made(host, LORA_EXTRACT, values, "output", target, gpu=inputs["device"] == "cuda")
        report = _said(log, ("extracted ", "rank "))
        return Result((*_lora_values(host, path), report), text=_lines(report, path, said), files=(path,))


def _name_problems(constants: dict[str, Any]) -> Iterator[Problem]:
    if "output_name" in constants:
        yield from refused("output_name", guard.plain_name, constants["output_name"], "output_name")


def lora_target(host: Host, name: str) -> Path:
    """Where a new LoRA called `name` goes. UserError where it cannot be written."""
    path = host.loras_dir() / LORA_SUBFOLDER / f"{guard.plain_name(name, 'output_name')}.safetensors"
    try_file(path, "output_name")
    return path


async def _made(host: Host, tool: str, values: dict[str, Any], output: str, wanted: Path, *, gpu: bool = False) -> tuple[Path, str, Path]:
    """Let `tool` make a file where its option `output` says. Returns where it was put, what to say of the name, and the job's log."""
    with made_beside(wanted) as new:
        arguments = to_argv(tool, {**values, output: str(new)})
        job = await run_tool(host, tool, arguments, foreign=False, gpu=gpu, warns=tool != LORA_CONVERT)
        path, said = await asyncio.to_thread(place, new, wanted)
    return path, said, job.folder.log


def _lines(*parts: object) -> str:
    return "\n".join(str(part) for part in parts if part)


def _lora_values(host: Host, path: Path) -> tuple[str, str, Any]:
    return listed(path), str(path), host.lora_model(path)


def _said(log: Path, beginnings: tuple[str, ...]) -> str:
    """The lines of a job's log that tell what it did."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(line for line in lines if any(beginning in line for beginning in beginnings))


def _widths(text: str) -> list[float]:
    """UserError for what is no list of widths."""
    try:
        widths = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise UserError(f"more_sigma_rel: {text!r} is not a list of numbers such as 0.1, 0.15") from None
    for width in widths:
        power_betas(width, 1)
    return widths


def _ema_values(chosen: dict[str, Any]) -> dict[str, Any]:
    more = _widths(chosen["more_sigma_rel"])
    if chosen["method"] == POWER:
        return {"sigma_rels": [chosen["sigma_rel"], *more]} if more else {"sigma_rel": chosen["sigma_rel"]}
    return {"beta": chosen["beta"], **({"beta2": chosen["beta2"]} if chosen["method"] == BETAS else {})}


def _betas(chosen: dict[str, Any], steps: int) -> tuple[float, ...]:
    if chosen["method"] == POWER:
        return power_betas(chosen["sigma_rel"], steps)
    return linear_betas(chosen["beta"], chosen["beta2"] if chosen["method"] == BETAS else None, steps)


def _title(chosen: dict[str, Any], name: str) -> str:
    value = {
        BETA: f"beta {chosen['beta']:g}",
        BETAS: f"beta {chosen['beta']:g} to {chosen['beta2']:g}",
        POWER: f"sigma_rel {chosen['sigma_rel']:g}",
    }
    return f"{name}: {value[chosen['method']]}"


def _image(path: Path, used: list[Checkpoint], betas: tuple[float, ...], title: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(path, [checkpoint.label for checkpoint in used], betas, title)


def _ema_report(used: list[Checkpoint], betas: tuple[float, ...]) -> str:
    lines = [f"{len(used)} checkpoints: {used[0].path.name} to {used[-1].path.name}", f"beta: {', '.join(f'{beta:.4f}' for beta in betas)}"]
    return "\n".join(lines)
