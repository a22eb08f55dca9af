"""The LoRA network: which linears get an adapter, and the adapters as one trainable, savable module.

Selection, key names and options follow musubi-tuner, so that files go both ways: `lora_unet_{path with _}.lora_down.weight`.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from .linear import Linear, LoRAAdapter

if TYPE_CHECKING:
    from ..architectures.card import Card

logger = logging.getLogger(__name__)

PREFIX = "lora_unet_"
DEFAULT_RANK = 4
NETWORK_ARGS = (
    "conv_alpha",
    "conv_dim",
    "exclude_patterns",
    "include_patterns",
    "loraplus_lr_ratio",
    "module_dropout",
    "rank_dropout",
    "verbose",
)


class MaxNormReport(NamedTuple):
    """What `apply_max_norm` did: adapters scaled down, and the mean and largest norm afterwards."""

    keys_scaled: int
    mean_norm: float
    max_norm: float


@dataclass(frozen=True)
class NetworkOptions:
    """`--network_args`, parsed. conv_dim and conv_alpha are accepted; these transformers have no convolutions in their blocks."""

    exclude_patterns: tuple[re.Pattern[str], ...] = ()
    include_patterns: tuple[re.Pattern[str], ...] = ()
    rank_dropout: float | None = None
    module_dropout: float | None = None
    loraplus_lr_ratio: float | None = None
    verbose: bool = False


def parse_network_args(network_args: Sequence[str] | Mapping[str, str] | None) -> NetworkOptions:
    """`--network_args` ("key=value" strings, or a mapping) -> NetworkOptions. UserError names the bad argument."""
    values = network_args if isinstance(network_args, Mapping) else dict(_split_argument(text) for text in network_args or ())
    for key in values:
        if key not in NETWORK_ARGS:
            raise UserError(f"--network_args {key}: unknown; known are {', '.join(NETWORK_ARGS)}")
    _number(values, "conv_dim")
    _number(values, "conv_alpha")
    return NetworkOptions(
        exclude_patterns=_patterns(values, "exclude_patterns"),
        include_patterns=_patterns(values, "include_patterns"),
        rank_dropout=_number(values, "rank_dropout", below=1.0),
        module_dropout=_number(values, "module_dropout", below=1.0),
        loraplus_lr_ratio=_number(values, "loraplus_lr_ratio"),
        verbose=str(values.get("verbose", "")) == "True",
    )


class LoRANetwork(nn.Module):
    """All adapters of a model, in the order of the model's modules. `state_dict()` has exactly a LoRA file's keys."""

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__()
        self.options = options
        self.targets: dict[str, str] = {}

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
    ) -> LoRANetwork:
        """Attach new adapters (float32, on the model's device) to the chosen linears of `model`.

        rank None is 4, alpha None is 1 and alpha 0 is the rank, as in musubi-tuner. ranks: (rank, alpha) per adapter name, of
        `ranks_from_weights`, for `--dim_from_weights`; linears it does not name get none. UserError when nothing is chosen.
        """
        options = parse_network_args(network_args)
        network = cls(options)
        default = (DEFAULT_RANK if rank is None else rank, 1.0 if alpha is None else float(alpha))
        for path, linear in _chosen_linears(model, card, options):
            name = adapter_name(path)
            size = default if ranks is None else ranks.get(name)
            if size is None:
                continue
            adapter = LoRAAdapter(
                linear.in_features, linear.out_features, *size,
                dropout=dropout, rank_dropout=options.rank_dropout, module_dropout=options.module_dropout,
            )  # fmt: skip
            network.add_module(name, adapter.to(linear.device))
            network.targets[name] = path
            linear.attach(adapter)
            if options.verbose:
                logger.info("LoRA: %s rank %d alpha %g", path, size[0], adapter.alpha.item())
        if not network.targets:
            raise UserError(
                "No LoRA modules found: --network_args exclude_patterns leave nothing to train"
                if ranks is None
                else "No LoRA modules found: the file of --network_weights fits none of this model's layers"
            )
        logger.info("create LoRA for U-Net/DiT: %d modules.", len(network.targets))
        return network

    def adapters(self) -> Iterator[LoRAAdapter]:
        """The adapters in file order."""
        for module in self.children():
            if isinstance(module, LoRAAdapter):
                yield module

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Take the adapters of a LoRA in musubi-tuner's layout. Missing and surplus keys are logged; a different rank is a UserError."""
        own = self.state_dict()
        for key, tensor in state.items():
            if key in own and own[key].shape != tensor.shape:
                raise UserError(
                    f"{key} is {list(tensor.shape)} in the LoRA file and {list(own[key].shape)} in this network; "
                    "use the same --network_dim, or --dim_from_weights"
                )
        result = self.load_state_dict(dict(state), strict=False)
        if len(result.missing_keys) == len(own):
            raise UserError(f"the LoRA file fits none of this model's layers; its keys are like {next(iter(state), 'none')}")
        for what, keys in (("missing from", result.missing_keys), ("surplus in", result.unexpected_keys)):
            if keys:
                logger.warning("%d keys %s the LoRA file, such as %s", len(keys), what, keys[0])

    def parameter_groups(self, lr: float | None) -> list[dict[str, Any]]:
        """Optimizer groups. With `loraplus_lr_ratio`, a second group of the up weights with lr * ratio (arXiv 2402.12354)."""
        down = [adapter.lora_down.weight for adapter in self.adapters()]
        up = [adapter.lora_up.weight for adapter in self.adapters()]
        learning_rate = {} if lr is None else {"lr": lr}
        ratio = self.options.loraplus_lr_ratio
        if ratio is None:
            return [{"params": [parameter for pair in zip(down, up, strict=True) for parameter in pair], **learning_rate}]
        return [{"params": down, **learning_rate}, {"params": up, **({} if lr is None else {"lr": lr * ratio})}]

    @torch.no_grad()
    def apply_max_norm(self, limit: float) -> MaxNormReport:
        """Scale down adapters whose delta has a Frobenius norm above `limit`, half on each factor (`--scale_weight_norms`)."""
        norms = torch.stack([_delta_norm(adapter) for adapter in self.adapters()])
        ratios = norms.clamp(min=limit / 2).clamp(max=limit) / norms.clamp(min=limit / 2)
        for adapter, ratio in zip(self.adapters(), ratios.tolist(), strict=True):
            if ratio != 1.0:
                adapter.lora_up.weight.mul_(ratio**0.5)
                adapter.lora_down.weight.mul_(ratio**0.5)
        after = norms * ratios
        return MaxNormReport(int((ratios != 1.0).sum()), after.mean().item(), after.max().item())

    def set_enabled(self, enabled: bool) -> None:
        """Switch all adapters on or off, without removing them."""
        for adapter in self.adapters():
            adapter.enabled = enabled


def adapter_name(path: str) -> str:
    """Module path -> adapter name in files: "blocks.0.ffn.2" -> "lora_unet_blocks_0_ffn_2"."""
    return PREFIX + path.replace(".", "_")


def ranks_from_weights(state: Mapping[str, Tensor]) -> dict[str, tuple[int, float]]:
    """(rank, alpha) per adapter name of a LoRA in musubi-tuner's layout; without an alpha it is the rank."""
    ranks = {}
    for key, tensor in state.items():
        name, found, _ = key.partition(".lora_down.weight")
        if found:
            alpha = state.get(f"{name}.alpha")
            ranks[name] = (tensor.shape[0], float(tensor.shape[0] if alpha is None else alpha))
    return ranks


def _chosen_linears(model: nn.Module, card: Card, options: NetworkOptions) -> Iterator[tuple[str, Linear]]:
    exclude = (*options.exclude_patterns, re.compile(card.lora_exclude)) if card.lora_exclude else options.exclude_patterns
    for block_path, block in model.named_modules():
        if type(block).__name__ not in card.lora_blocks:
            continue
        for child_path, child in block.named_modules():
            path = f"{block_path}.{child_path}"
            if not isinstance(child, Linear):
                continue
            if any(p.fullmatch(path) for p in exclude) and not any(p.fullmatch(path) for p in options.include_patterns):
                if options.verbose:
                    logger.info("exclude: %s", path)
                continue
            yield path, child


def _delta_norm(adapter: LoRAAdapter) -> Tensor:
    """|scale * up @ down| from two rank x rank products: |U D|^2 = sum((U^T U) * (D D^T))."""
    up, down = adapter.lora_up.weight.double(), adapter.lora_down.weight.double()
    squared = ((up.t() @ up) * (down @ down.t())).sum().clamp(min=0)
    return (squared.sqrt() * adapter.scale).float()


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
