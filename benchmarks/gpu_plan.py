"""What the memory plan says of a configuration, as a trainer would ask it: from the header of a weight file, here one that is all hole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from musubi_backend import architectures
from musubi_backend.architectures import protocol
from musubi_backend.memory import estimate, gpus
from musubi_backend.memory.estimate import Estimate
from musubi_backend.options.parser import read
from musubi_backend.options.registry import tool
from musubi_backend.training import vram
from musubi_backend.training.planned_batch import on_meta
from musubi_backend.training.planning import Planner
from musubi_backend.weights.geometry import GEOMETRY_KEY
from musubi_backend.weights.safetensors_file import layout_of

from .gpu_models import LORA_ALPHA, LORA_RANK, Model, Setting, Size, latents

META = torch.device("meta")


@dataclass
class Plans:
    """Of one device. folder: where files of headers go. speed: of the device, where it was measured."""

    device: torch.device
    folder: Path
    speed: gpus.Speed | None = None
    planners: dict[tuple[Model, Size], Planner] = field(default_factory=dict)

    def of(self, model: Model, setting: Setting, size: Size) -> Estimate:
        """UserError where the trainer would refuse these options."""
        values = self._values(model, setting)
        return self._planner(model, size).of(_architecture(model, values))(values)

    def within(self, model: Model, size: Size, limit: int) -> Setting:
        """What `--vram` would choose. limit: bytes."""
        values = self._values(model, Setting())
        return setting_of(vram.choose(values, self._planner(model, size).of(_architecture(model, values)), limit).values)

    def seconds(self, plan: Estimate) -> float | None:
        """Of a step; None where the device's speed is not known."""
        return None if self.speed is None else self.speed.seconds(plan.operations, plan.to_device)

    def _planner(self, model: Model, size: Size) -> Planner:
        key = model, size
        if key not in self.planners:
            first, _ = latents(size, torch.device("cpu"))
            batch = {"latents": first, **model.batch(tuple(first.shape), torch.device("cpu"))}
            self.planners[key] = Planner(on_meta(batch), torch.bfloat16, self.device)
        return self.planners[key]

    def _values(self, model: Model, setting: Setting) -> dict[str, Any]:
        path = self.folder / f"{model.name.replace(' ', '_')}.safetensors"
        if not path.exists():
            write_header(model, path)
        card = architectures.cards()[model.card_id]
        task = ("--task", "t2v-14B") if model.card_id == "wan" else ()
        words = [
            "--dit", str(path), "--dataset_config", "none", "--output_dir", "none", "--output_name", "none", "--mixed_precision", "bf16",
            "--network_module", card.network_module, "--network_dim", str(LORA_RANK), "--network_alpha", str(LORA_ALPHA),
            "--optimizer_type", "AdamW", "--seed", "1", *task, *words_of(setting, model),
        ]  # fmt: skip
        return vars(read(tool(model.tool), words))


def words_of(setting: Setting, model: Model) -> list[str]:
    """The trainer's flags. HunyuanVideo's `--fp8_base` is scaled, as it has no `--fp8_scaled`."""
    attention = {"torch": "--sdpa", "flash": "--flash_attn"}.get(setting.attention, f"--{setting.attention}")
    flags = {
        "--fp8_base": setting.fp8_scaled, "--fp8_scaled": setting.fp8_scaled and model.card_id != "hv",
        "--use_pinned_memory_for_block_swap": setting.blocks_to_swap and setting.pinned, "--gradient_checkpointing": setting.checkpointing,
        "--gradient_checkpointing_cpu_offload": setting.offload, "--compile": setting.compiled, "--split_attn": setting.split,
    }  # fmt: skip
    numbers = {
        "--blocks_to_swap": setting.blocks_to_swap, "--block_swap_ring_size": setting.ring if setting.blocks_to_swap else 0,
        "--keep_attention_blocks": setting.keep_attention, "--offload_attention_blocks": setting.attention_in_ram,
        "--w8a8": setting.w8a8 or 0,
    }  # fmt: skip
    given = [word for flag, value in numbers.items() if value for word in (flag, str(value))]
    return [attention, *(flag for flag, chosen in flags.items() if chosen), *given]


def setting_of(values: dict[str, Any]) -> Setting:
    """The other way round, of what `--vram` chooses."""
    return Setting(
        fp8_scaled=bool(values.get("fp8_base")), blocks_to_swap=values.get("blocks_to_swap") or 0,
        checkpointing=bool(values.get("gradient_checkpointing")), offload=bool(values.get("gradient_checkpointing_cpu_offload")),
        keep_attention=values.get("keep_attention_blocks") or 0, w8a8=values.get("w8a8"),
    )  # fmt: skip


def peak_gb(plan: Estimate) -> float:
    """At the worst moment, without what PyTorch does not count: the driver."""
    return max(phase.total - phase.parts.get(estimate.DRIVER, 0) for phase in plan.phases) / estimate.GB


def write_header(model: Model, path: Path) -> None:
    """A weight file in bf16 of which only the header takes room on the disk."""
    with META:
        shapes = {name: tuple(one.shape) for name, one in model.make(model.geometry).state_dict().items()}
    _, header = layout_of({name: ("BF16", shape) for name, shape in shapes.items()}, {GEOMETRY_KEY: model.geometry.to_json()})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 2 * sum(torch.Size(shape).numel() for shape in shapes.values()))


def _architecture(model: Model, values: dict[str, Any]) -> protocol.Architecture:
    architecture = protocol.load(model.card_id)
    return architecture.at(architectures.chosen_card(model.card_id, values)).configured(values)
