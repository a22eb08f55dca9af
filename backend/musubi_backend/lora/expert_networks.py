"""One LoRA network per expert, trained together: the models for high and low noise in one run, each with a LoRA of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .network import LoRANetwork, MaxNormReport, NetworkOptions


class ExpertNetworks(nn.Module):
    """Behaves like one network. `state_dict()` has the expert's name before every key: it is for states, not for LoRA files."""

    def __init__(self, networks: Mapping[str, LoRANetwork]) -> None:
        """networks: by the name of the expert, with equal options."""
        super().__init__()
        self.parts: dict[str, LoRANetwork] = dict(networks)
        for name, network in networks.items():
            self.add_module(name, network)

    @property
    def options(self) -> NetworkOptions:
        return next(iter(self.parts.values())).options

    @property
    def targets(self) -> dict[str, str]:
        """Module path in its expert for every LoRA module, named with the expert."""
        return {f"{name}.{module}": path for name, network in self.parts.items() for module, path in network.targets.items()}

    @contextlib.contextmanager
    def working_in(self, dtype: torch.dtype) -> Iterator[Callable[[], None]]:
        """As `LoRANetwork.working_in`, of both."""
        with contextlib.ExitStack() as stack:
            each = [stack.enter_context(network.working_in(dtype)) for network in self.parts.values()]

            def gather() -> None:
                for one in each:
                    one()

            yield gather

    def parameter_groups(self, lr: float | None) -> list[dict[str, Any]]:
        """As of one network: groups of the same kind are joined, so that learning rates are reported once."""
        groups = [network.parameter_groups(lr) for network in self.parts.values()]
        return [{**same[0], "params": [one for group in same for one in group["params"]]} for same in zip(*groups, strict=True)]

    def apply_max_norm(self, limit: float) -> MaxNormReport:
        """As `LoRANetwork.apply_max_norm`, over both."""
        reports = [network.apply_max_norm(limit) for network in self.parts.values()]
        counts = [len(network.targets) for network in self.parts.values()]
        mean = sum(report.mean_norm * count for report, count in zip(reports, counts, strict=True)) / sum(counts)
        return MaxNormReport(sum(report.keys_scaled for report in reports), mean, max(report.max_norm for report in reports))


def parts_of(network: LoRANetwork | ExpertNetworks) -> dict[str, LoRANetwork]:
    """The networks behind one, by the expert they are for; one for the whole model under an empty name."""
    return dict(network.parts) if isinstance(network, ExpertNetworks) else {"": network}
