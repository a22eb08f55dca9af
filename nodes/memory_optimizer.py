"""The Memory Optimizer: settings with which a training fits into a GPU, and what each phase of it needs."""

from __future__ import annotations

import asyncio
from typing import Any

from ..backend.musubi_backend.documents import read_json
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.memory.estimate import size
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import PLAN, TRAIN
from ..backend.musubi_backend.options.registry import options_for, tool_names
from ..backend.musubi_backend.training.vram import AUTO, CHOSEN, OFF
from . import training_values
from .dataset import DATASET
from .jobs import config as configuration
from .jobs.folder import JobFolder
from .jobs.follow import run_tool
from .memory_chart import draw
from .models import MODELS, card_of
from .optimizer_settings import OPTIMIZER
from .spec import Host, Input, Node, NodeSpec, Output, Result
from .training_settings import LORA_CONFIG, SAMPLING

_SIZES = ("6 GB", "8 GB", "10 GB", "12 GB", "16 GB", "20 GB", "24 GB", "32 GB", "48 GB", "80 GB")


class MemoryOptimizer(Node):
    spec = NodeSpec(
        id="MusubiTuner_MemoryOptimizer",
        display_name="Memory Optimizer",
        category="MusubiTuner/Train",
        description="Choose what saves memory so that a training fits into your GPU, and see what each phase of it needs before "
        "anything is cached or loaded.",
        inputs=(
            Input("models", MODELS, "From Model Paths; where it names two experts, both are planned for"),
            Input("dataset", DATASET, "From Dataset Config: its largest clips decide"),
            Input("lora_config", LORA_CONFIG, "From LoRA Training Config. Its memory settings are chosen anew, everything else "
                  "stays."),
            Input("vram", "COMBO", "How much GPU memory the training may take. auto: what is free now, after ComfyUI's own models have "
                  "left the GPU. off: nothing is chosen, and the trainer starts even what cannot fit.",
                  default=AUTO, choices=(AUTO, *_SIZES, OFF)),
            Input("sampling", SAMPLING, "From Sampling Config, so that samples on the way fit too: their text encoder, the transformer at "
                  "their size and the VAE that decodes them. Without it none are planned.", optional=True),
            Input("optimizer", OPTIMIZER, "From Optimizer Config, for the memory of its state. Without it that of AdamW is planned.",
                  optional=True),
        ),
        outputs=(
            Output("lora_config", LORA_CONFIG, "For the trainer"),
            Output("report", "STRING", "What it needs, what was chosen and what each choice costs"),
            Output("chart", "IMAGE", "The parts of each phase, and how much memory there is"),
        ),
        is_output=True,
    )  # fmt: skip

    async def run(self, host: Host, **inputs: Any) -> Result:
        card, config = card_of(inputs["models"]), inputs["lora_config"]
        trainer = tool_names(card)[TRAIN]
        known = options_for(trainer)
        free = {name: known[name].default for name in CHOSEN if name in config and name in known}
        kept = {**config, "vram": OFF} if inputs["vram"] == OFF else {**config, **free}
        folder = JobFolder.create(host.home, PLAN)
        values = {
            **training_values.common_values(card, {**inputs, "lora_config": kept}, inputs["dataset"]),
            **training_values.write_prompts(inputs["sampling"], folder.path),
            "output_dir": str(folder.path),
            "output_name": "plan",
            "vram": inputs["vram"].removesuffix(" GB"),
        }
        output = folder.path / "plan.json"
        words = [*to_argv(PLAN, {"output": str(output)}), trainer, *to_argv(trainer, values)]
        await run_tool(host, PLAN, words, foreign=False, folder=folder, warns=False)
        try:
            plan = read_json(output, dict)
        except (OSError, ValueError) as error:
            raise UserError(f"the plan cannot be read ({output}: {error}). Run again.") from error
        report = _report(plan)
        line = report.partition("\n")[0]
        chart = host.temp_dir / "musubi_tuner" / f"{folder.id}.png"
        chart.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(draw, chart, plan["phases"], plan["limit"], f"{card.title}: {line}")
        # our trainer chooses by itself when it starts: what a state was trained with stays, however much memory is free by then
        own = configuration.load(host.home).engine == "builtin"
        filled = {name: value for name, value in plan["chosen"].items() if not known[name].own}
        chosen = {**kept, "vram": values["vram"]} if own else {**kept, **filled}
        return Result((chosen, report, host.frames(chart)), text=report, line=line, shown=(chart,), files=(chart,))


def _report(plan: dict[str, Any]) -> str:
    """The sentence, then a line for each thing that was chosen."""
    first = str(plan["sentence"])
    if not plan["fits"]:
        first = f"Does not fit: {first}. Use fewer frames, a smaller resolution, or a batch_size of 1"
    lines = [first, *(cost.replace("--", "") for cost in plan["costs"])]
    if plan["ram"]:
        lines.append(f"System RAM for what waits there: {size(plan['ram'])}")
    if plan["seconds"]:
        lines.append(f"A step takes about {plan['seconds']:.1f} s ({plan['speed']})")
    return "\n".join(lines)
