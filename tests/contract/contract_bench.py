"""Trainings and generations of the table's cells, through the tools' own entry, each done once."""

from __future__ import annotations

import contextlib
import io
from argparse import Namespace
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from contract_models import FAMILIES, Family, conditions, write_caches, write_transformers
from contract_table import GENERATING, TRAINING, Cell, Promise, Setting, row
from musubi_backend import architectures, job
from musubi_backend.__main__ import main
from musubi_backend.architectures import protocol
from musubi_backend.inference.requests import build_request
from musubi_backend.inference.settings import GenerateSettings
from musubi_backend.options.parser import parse
from musubi_backend.weights.safetensors_file import load
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

Tensors = dict[str, Tensor]
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16"}
STOPPED = 3
made_up = False
"""Are the values those of a simulated GPU?"""


class Bench:
    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.numbers = iter(range(10**6))
        self.straight = cache(self._straight)
        self.latents = cache(self._latents)
        self.files = cache(self._files)

    @property
    def simulated(self) -> bool:
        return made_up

    def sixteen_bits(self, cell: Cell) -> bool:
        return cell.precision == "16 bits" or self.device == "cuda"

    def train(self, cell: Cell) -> Tensors:
        """The LoRA of a cell after two steps."""
        if cell.life == "straight":
            return self.straight(cell)
        out = self.new_folder()
        if cell.life == "resumed":
            assert self._tool(self.words(cell, out, "--save_every_n_steps", "1", "--save_state")) == 0
            assert_kept(lora_in(out), self.straight(straight(cell)), Promise(None, "saving changes nothing"))
            return self._resumed(cell, out / "lora-step00000001-state")
        with stop_in_the_second_step():
            assert self._tool(self.words(cell, out)) == STOPPED
        (state,) = out.glob("*-state")
        assert "00000001" in state.name, state
        return self._resumed(cell, state)

    def _resumed(self, cell: Cell, state: Path) -> Tensors:
        out = self.new_folder()
        assert self._tool(self.words(cell, out, "--resume", str(state))) == 0
        return lora_in(out)

    def _straight(self, cell: Cell) -> Tensors:
        out = self.new_folder()
        assert self._tool(self.words(cell, out)) == 0
        return lora_in(out)

    def words(self, cell: Cell, out: Path, *more: str) -> list[str]:
        """The command line of a training. Plain gradient descent, so that a LoRA is as far from another as their gradients are."""
        family = FAMILIES[cell.family]
        models, data = self.files(cell.family)
        precision = "auto" if cell.precision == "auto" else SHORT[family.dtype]
        return [
            family.tool("train_network") if family.card_id != "hv" else "hv_train_network", *models, *family.flags,
            "--dataset_config", str(data), "--output_dir", str(out), "--output_name", "lora", "--network_dim", "4", "--network_alpha", "4",
            "--network_module", architectures.cards()[family.card_id].network_module, "--optimizer_type", "torch.optim.SGD",
            "--learning_rate", "1", "--max_grad_norm", "0", "--max_train_steps", "2", "--seed", "7", "--timestep_sampling", "shift",
            "--discrete_flow_shift", "3", "--mixed_precision", precision, *self._flags(cell.setting, family, "--sdpa"),
            *(("--vram", "off") if self.simulated else ()), *more,  # its memory is made up
        ]  # fmt: skip

    def _flags(self, setting: Setting, family: Family, attention: str) -> list[str]:
        compiler = "inductor" if self.device == "cuda" else "aot_eager"
        flags = [word.format(swap=family.swap, compiler=compiler) for word in setting.flags]
        chosen = {"--flash_attn", "--flash3", "--xformers"} & set(flags)
        return flags if chosen or not attention else [attention, *flags]

    def _latents(self, cell: Cell) -> Tensor:
        """What a generator samples in two steps, from given texts and conditions; neither encoders nor a VAE are needed."""
        family = FAMILIES[cell.family]
        models, _ = self.files(cell.family)
        tool = "hv_generate_video" if family.card_id == "hv" else family.tool("generate_video")
        words = [*models, *family.flags, *family.generator, "--infer_steps", "2", "--seed", "1", "--device", self.device]
        (self.folder / "not read").touch()
        for option in family.encoders:
            words += [f"--{option}", str(self.folder / "not read")]
        flags = self._flags(cell.setting, family, "")
        args: Namespace = parse(tool, [*words, "--prompt", "a cat", "--save_path", str(self.folder), "--output_type", "latent", *flags])
        architecture, device = protocol.load(family.card_id).configured(vars(args)), torch.device(self.device)
        request = build_request({"prompt": "a cat"}, GenerateSettings.read(args), architecture)
        texts = {text: family.text(number) for number, text in enumerate(architecture.texts(request))}
        transformer = architecture.transformer(device, architecture.generating_dtype(device)).to(device)
        latents = architecture.sample(transformer, request, texts, conditions(family), device=device)
        return latents.float().cpu()

    def reference_lora(self, cell: Cell) -> Tensors:
        """What a training is compared with: the straight run of another row, or the same once more."""
        setting = row(TRAINING, cell.setting.reference)
        do = self._straight if setting == cell.setting else self.straight
        return do(Cell(cell.family, cell.precision, setting, "straight"))

    def reference_latents(self, cell: Cell) -> Tensor:
        """What a generation is compared with, likewise."""
        setting = row(GENERATING, cell.setting.reference)
        do = self._latents if setting == cell.setting else self.latents
        return do(Cell(cell.family, cell.precision, setting, "straight"))

    def _files(self, name: str) -> tuple[list[str], Path]:
        folder = self.folder / f"{name} files"
        folder.mkdir()
        return write_transformers(FAMILIES[name], folder), write_caches(FAMILIES[name], folder)

    def new_folder(self) -> Path:
        """Where a training may write."""
        return self.folder / str(next(self.numbers))

    def _tool(self, words: list[str]) -> int:
        """Runs a trainer in this process, and sees that it computed where it should. Returns its exit code."""
        said = io.StringIO()
        job._stop.clear()
        try:
            with contextlib.redirect_stdout(said):
                code = main(words)
        finally:
            job._stop.clear()
            print(said.getvalue())
        assert f"accelerator device: {self.device}" in said.getvalue()
        return code


def straight(cell: Cell) -> Cell:
    return Cell(cell.family, cell.precision, cell.setting, "straight")


@contextlib.contextmanager
def stop_in_the_second_step() -> Iterator[None]:
    """A stop is asked for by the first layer that runs after an optimizer step."""
    seen = {"layer": False, "step": False}

    def after_step(*_: Any) -> None:
        seen["step"] = seen["layer"]  # before the first layer runs, settings of the optimizer are tried

    def before_layer(*_: Any) -> None:
        seen["layer"] = True
        if seen["step"] and not job.stop_requested():
            job.request_stop()

    hooks = [
        register_optimizer_step_post_hook(after_step),
        register_module_forward_pre_hook(before_layer),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def assert_kept(result: Mapping[str, Tensor], reference: Mapping[str, Tensor], promise: Promise) -> None:
    """The promise of a cell is kept. Tensors must be finite, and not all zero."""
    assert result.keys() == reference.keys()
    if made_up:
        assert {name: (one.shape, one.dtype) for name, one in result.items()} == {
            name: (one.shape, one.dtype) for name, one in reference.items()
        }
        return
    assert all(tensor.isfinite().all() for tensor in result.values())
    far = distance(result, reference)
    if promise.limit is None:
        changed = [name for name in result if not torch.equal(result[name], reference[name])]
        assert not changed, f"{len(changed)} of {len(result)} tensors differ, {far:.2e} in all, first {changed[0]}: {promise.why}"
    else:
        assert promise.least <= far <= promise.limit, f"{far:.2e} is not within {promise.least:g} and {promise.limit:g}: {promise.why}"


def distance(result: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """|result - reference| / |reference| over what starts at zero (LoRA-up) or, where there is no such, over all."""
    names = [name for name in reference if "lora_up" in name] or list(reference)
    apart = sum(float((result[name].double() - reference[name].double()).square().sum()) for name in names)
    size = sum(float(reference[name].double().square().sum()) for name in names)
    assert size > 0, "nothing was learned"
    return float((apart / size) ** 0.5)


def lora_in(out: Path) -> Tensors:
    """What a training left in its folder: one LoRA, or one of each expert."""
    found = {path.stem: load(path) for path in out.glob("lora*.safetensors") if "step" not in path.stem}
    assert found, f"no LoRA in {out}"
    return {f"{stem}.{name}": tensor for stem, tensors in found.items() for name, tensor in tensors.items()}
