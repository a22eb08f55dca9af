"""The network that is trained (LoRA, LoHa or LoKr): which linears get a LoRA module, and all of those as one savable module.

Selection, key names and options follow musubi-tuner, so that files go both ways: `lora_unet_{path with _}.lora_down.weight`.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import job
from ..counted import counted
from ..errors import UserError
from ..layers.linear import Linear
from . import working
from .modules import LoHa, LoKr, LoRA, LoRAModule
from .selection import Selection, without_effect
from .shapes import LOHA, LOKR, LORA

if TYPE_CHECKING:
    from ..architectures.card import Card

logger = logging.getLogger(__name__)

PREFIX = "lora_unet_"
DEFAULT_RANK = 4
NETWORK_ARGS = (
    "conv_alpha",
    "conv_dim",
    "exclude_patterns",
    "factor",
    "include_patterns",
    "loraplus_lr_ratio",
    "module_dropout",
    "rank_dropout",
    "verbose",
)

_ONLY_FOR = {"factor": LOKR, "loraplus_lr_ratio": LORA}


class MaxNormReport(NamedTuple):
    """What `apply_max_norm` did: LoRA modules scaled down, and the mean and largest norm afterwards."""

    keys_scaled: int
    mean_norm: float
    max_norm: float


@dataclass(frozen=True)
class NetworkOptions:
    """`--network_args`, parsed. conv_dim and conv_alpha are accepted; these transformers have no convolutions in their blocks."""

    selection: Selection = field(default_factory=Selection)
    factor: int = -1
    rank_dropout: float | None = None
    module_dropout: float | None = None
    loraplus_lr_ratio: float | None = None
    verbose: bool = False


def parse_network_args(network_args: Sequence[str] | Mapping[str, str] | None, kind: str = LORA) -> NetworkOptions:
    """`--network_args` ("key=value" strings, or a mapping) of a network of `kind` -> NetworkOptions. UserError names the bad argument."""
    values = network_args if isinstance(network_args, Mapping) else dict(_split_argument(text) for text in network_args or ())
    for key in values:
        if key not in NETWORK_ARGS:
            raise UserError(f"--network_args {key}: unknown; known are {', '.join(NETWORK_ARGS)}")
        if key in _ONLY_FOR and kind != _ONLY_FOR[key]:
            raise UserError(f"--network_args {key} is for {_ONLY_FOR[key]} only, and the network is a {kind}; leave it out")
    _number(values, "conv_dim")
    _number(values, "conv_alpha")
    return NetworkOptions(
        selection=Selection(_patterns(values, "exclude_patterns"), _patterns(values, "include_patterns")),
        factor=_factor(values),
        rank_dropout=_number(values, "rank_dropout", below=1.0),
        module_dropout=_number(values, "module_dropout", below=1.0),
        loraplus_lr_ratio=_ratio(values),
        verbose=str(values.get("verbose", "")) == "True",
    )


class LoRANetwork(nn.Module):
    """All LoRA modules of a model, in the order of the model's modules. `state_dict()` has exactly a LoRA file's keys."""

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__()
        self.options = options
        self.targets: dict[str, str] = {}
        self._working: dict[torch.dtype, working.WorkingCopies] = {}

    @classmethod
    def create(
        cls,
        model: nn.Module,
        card: Card,
        rank: int | None = None,
        alpha: float | None = None,
        dropout: float | None = None,
        network_args: Sequence[str] | Mapping[str, str] | None = None,
        ranks: Mapping[str, tuple[int, float]] | None = None,
        kind: str = LORA,
    ) -> LoRANetwork:
        """Attach new LoRA modules (float32, on the model's device) to the chosen linears of `model`.

        rank None is 4, alpha None is 1 and alpha 0 is the rank, as in musubi-tuner. ranks: (rank, alpha) per LoRA module name, of
        `ranks_from_weights`, for `--dim_from_weights`; linears it does not name get none. kind: LORA, LOHA or LOKR. UserError when
        nothing is chosen.
        """
        options = parse_network_args(network_args, kind)
        network = cls(options)
        default = (DEFAULT_RANK if rank is None else rank, 1.0 if alpha is None else float(alpha))
        _warn_of_patterns(model, card, options)
        narrow: list[str] = []
        for path, linear in _chosen_linears(model, card, options):
            name = module_name(path)
            size = default if ranks is None else ranks.get(name)
            if size is None:
                continue
            module = _module(kind, linear, size, dropout, options)
            network.add_module(name, module.to(linear.device))
            network.targets[name] = path
            linear.attach(module)
            if size[0] > min(linear.in_features, linear.out_features):
                narrow.append(path)
            if options.verbose:
                logger.info("%s: %s rank %d alpha %g", kind, path, size[0], module.alpha.item())
        if not network.targets:
            raise UserError(
                "No LoRA modules found: --network_args exclude_patterns leave nothing to train"
                if ranks is None
                else "No LoRA modules found: the file of --network_weights fits none of this model's layers"
            )
        if narrow and kind == LORA and ranks is None:
            width = min(_width(model, narrow[0]))
            logger.warning(
                "--network_dim %d is above the width of %d of the %d layers (%s: %d): a lower one learns the same there",
                default[0], len(narrow), len(network.targets), narrow[0], width,
            )  # fmt: skip
        logger.info("create LoRA for U-Net/DiT: %d modules.", len(network.targets))
        job.phase(f"LoRA on {counted(len(network.targets), 'layer')}")
        return network

    def lora_modules(self) -> Iterator[LoRAModule]:
        """The LoRA modules in file order."""
        for module in self.children():
            if isinstance(module, LoRAModule):
                yield module

    def attach_to(self, model: nn.Module) -> None:
        """Let a further model of the same shape compute with these LoRA modules too (they are trained by both)."""
        for name, path in self.targets.items():
            linear, module = model.get_submodule(path), self.get_submodule(name)
            if not isinstance(linear, Linear) or not isinstance(module, LoRAModule):
                raise TypeError(f"{path} carries no LoRA")
            linear.attach(module)

    def detach_from(self, model: nn.Module) -> None:
        """The opposite of `attach_to`."""
        for path in self.targets.values():
            linear = model.get_submodule(path)
            assert isinstance(linear, Linear)
            linear.attach(None)

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Take a LoRA in musubi-tuner's layout. Missing and surplus keys are logged; a different rank is a UserError."""
        own = self.state_dict()
        for key, tensor in state.items():
            if key in own and own[key].shape != tensor.shape:
                raise UserError(
                    f"{key} is {list(tensor.shape)} in the LoRA file and {list(own[key].shape)} in this network; "
                    "use the same --network_dim (and factor of a LoKr), or --dim_from_weights"
                )
        result = self.load_state_dict(dict(state), strict=False)
        if len(result.missing_keys) == len(own):
            raise UserError(f"the LoRA file fits none of this model's layers; its keys are like {next(iter(state), 'none')}")
        for what, keys in (("missing from", result.missing_keys), ("surplus in", result.unexpected_keys)):
            if keys:
                logger.warning("%s %s the LoRA file, such as %s", counted(len(keys), "key"), what, keys[0])

    def parameter_groups(self, lr: float | None) -> list[dict[str, Any]]:
        """Optimizer groups. With `loraplus_lr_ratio`, a second group of the up weights with lr * ratio (arXiv 2402.12354)."""
        everything = [parameter for module in self.lora_modules() for parameter in module.parameters()]
        learning_rate = {} if lr is None else {"lr": lr}
        ratio = self.options.loraplus_lr_ratio
        if ratio is None:
            return [{"params": everything, **learning_rate}]
        plus = [parameter for module in self.lora_modules() for parameter in module.plus_parameters()]
        faster = set(map(id, plus))
        others = [parameter for parameter in everything if id(parameter) not in faster]
        return [{"params": others, **learning_rate}, {"params": plus, **({} if lr is None else {"lr": lr * ratio})}]

    @torch.no_grad()
    def apply_max_norm(self, limit: float) -> MaxNormReport:
        """Scale down LoRA modules whose delta has a Frobenius norm above `limit` (`--scale_weight_norms`)."""
        norms = torch.stack([module.delta_norm() for module in self.lora_modules()])
        ratios = norms.clamp(min=limit / 2).clamp(max=limit) / norms.clamp(min=limit / 2)
        after = norms * ratios
        *shares, mean, largest = torch.cat([ratios, after.mean()[None], after.max()[None]]).tolist()  # the device is waited for once
        for module, ratio in zip(self.lora_modules(), shares, strict=True):
            if ratio != 1.0:
                module.shrink(ratio)
        return MaxNormReport(sum(ratio != 1.0 for ratio in shares), mean, largest)

    @torch.no_grad()
    def changes_nothing(self) -> bool:
        """Whether every LoRA module adds zero, as before the first step."""
        return all(module.delta_norm().item() == 0 for module in self.lora_modules())

    @contextlib.contextmanager
    def working_in(self, dtype: torch.dtype) -> Iterator[Callable[[], None]]:
        """For forward and backward passes in `dtype`: LoRA factors are cast together, once (`lora.working`). What was learned is in the
        parameters' gradients when this ends; where it is left by an exception, nothing. Gives what moves it there earlier: gradients of
        several batches add up in float32 only if each batch's are moved before the next one's come."""
        modules = working.of(self)
        if dtype == torch.float32 or not modules:
            yield _nothing_to_move
            return
        copies = self._working.get(dtype)
        if copies is None or not copies.fit():
            copies = self._working[dtype] = working.WorkingCopies(modules, dtype)
        copies.begin()
        try:
            yield copies.gather
            copies.gather()
        finally:
            copies.end()

    def set_strength(self, strength: float) -> None:
        """Multiply what all of them add; 1 is what was trained."""
        for module in self.lora_modules():
            module.scale = module.full_scale * strength


def module_name(path: str) -> str:
    """Module path -> LoRA module name in files: "blocks.0.ffn.2" -> "lora_unet_blocks_0_ffn_2"."""
    return PREFIX + path.replace(".", "_")


def ranks_from_weights(state: Mapping[str, Tensor]) -> dict[str, tuple[int, float]]:
    """(rank, alpha) per LoRA module name of a file in musubi-tuner's layout; without an alpha it is the rank. The rank of a LoKr's whole
    matrix is its longer side, which makes it whole again."""
    axes = {"lora_down.weight": 0, "hada_w1_b": 0, "lokr_w2_b": 0}
    ranks = {}
    for key, tensor in state.items():
        name, _, part = key.partition(".")
        if part not in axes and part != "lokr_w2":
            continue
        rank = tensor.shape[axes[part]] if part in axes else max(tensor.shape)
        alpha = state.get(f"{name}.alpha")
        ranks[name] = (rank, float(rank if alpha is None else alpha))
    return ranks


def kind_of(state: Mapping[str, Tensor]) -> str:
    """LORA, LOHA or LOKR: what a file in musubi-tuner's layout holds."""
    names = {key.partition(".")[2] for key in state}
    return LOHA if "hada_w1_a" in names else LOKR if "lokr_w1" in names else LORA


def _nothing_to_move() -> None:
    """Gradients are where they belong."""


def _module(kind: str, linear: Linear, size: tuple[int, float], dropout: float | None, options: NetworkOptions) -> LoRAModule:
    sizes = (linear.in_features, linear.out_features, *size)
    if kind == LOHA:
        return LoHa(*sizes, options.rank_dropout, options.module_dropout)
    if kind == LOKR:
        return LoKr(*sizes, options.rank_dropout, options.module_dropout, options.factor)
    return LoRA(*sizes, dropout, options.rank_dropout, options.module_dropout)


def _width(model: nn.Module, path: str) -> tuple[int, int]:
    linear = model.get_submodule(path)
    assert isinstance(linear, Linear)
    return linear.in_features, linear.out_features


def _warn_of_patterns(model: nn.Module, card: Card, options: NetworkOptions) -> None:
    """Name patterns that match no layer, and those of include_patterns that bring nothing back."""
    for key, problem in without_effect(options.selection, card, [path for path, _ in _linears(model, card)]):
        logger.warning("--network_args %s_patterns: %s", key, problem)


def _linears(model: nn.Module, card: Card) -> Iterator[tuple[str, Linear]]:
    """All that a network of this architecture could be put on."""
    for block_path, block in model.named_modules():
        if any(kind.__name__ in card.lora_blocks for kind in type(block).__mro__):
            yield from ((f"{block_path}.{path}", child) for path, child in block.named_modules() if isinstance(child, Linear))


def _chosen_linears(model: nn.Module, card: Card, options: NetworkOptions) -> Iterator[tuple[str, Linear]]:
    chosen = options.selection.of(card)
    for path, linear in _linears(model, card):
        if chosen.takes(path):
            yield path, linear
        elif options.verbose:
            logger.info("exclude: %s", path)


def _split_argument(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--network_args {text}: write key=value")
    return key.strip(), value.strip()


def _number(values: Mapping[str, str], key: str, below: float | None = None) -> float | None:
    text = values.get(key)
    if text is None or text == "None":
        return None
    try:
        number = float(text)
    except ValueError:
        raise UserError(f"--network_args {key}={text}: not a number") from None
    if number < 0 or (below is not None and number >= below):
        raise UserError(f"--network_args {key}={text}: must be at least 0" + (f" and below {below:g}" if below is not None else ""))
    return number


def _ratio(values: Mapping[str, str]) -> float | None:
    ratio = _number(values, "loraplus_lr_ratio")
    if ratio == 0:
        raise UserError("--network_args loraplus_lr_ratio=0 would train nothing: leave it out, or give 4 to 16")
    return ratio


def _factor(values: Mapping[str, str]) -> int:
    text = values.get("factor")
    try:
        factor = -1 if text is None else int(text)
    except ValueError:
        factor = 0
    if factor == 0 or factor < -1:
        raise UserError(f"--network_args factor={text}: give a whole number from 1 up, or -1 for the most even split")
    return factor


def _patterns(values: Mapping[str, str], key: str) -> tuple[re.Pattern[str], ...]:
    text = values.get(key)
    if text is None:
        return ()
    try:
        patterns = ast.literal_eval(text) if isinstance(text, str) else text
        if not isinstance(patterns, (list, tuple)):
            raise ValueError("not a list")
        return tuple(re.compile(pattern) for pattern in patterns)
    except (ValueError, SyntaxError, TypeError, re.error) as error:
        raise UserError(f"--network_args {key}={text}: give a list of regular expressions such as [r'.*ffn.*'] ({error})") from None
