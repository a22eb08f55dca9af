"""What our optimizers say of themselves, under the names of the program they come from: read from their state, at any time."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from .pairing import DOWN, OTHER, UP, W1, W2, Pair, by_name, names_of, role

VERSION = "1"
_FEATURES = (
    "use_spd", "use_cautious", "use_orthogonal_grad", "use_adopt_stability", "use_grams", "use_agr", "use_tam", "use_alora",
    "dynamic_weight_decay", "use_dynamic_adaptation", "use_lr_mask", "eight_bit", "legacy",
)  # fmt: skip
_MASK = ("lr_bump", "min_lr", "max_lr", "warmup_steps")
_ADAPTATION = ("adaptation_strength", "relationship_discovery_interval", "importance_decay", "compatibility_threshold")
_NO_PAIRS = "no two weights belong together yet"


class Reports:
    """The reports of an optimizer. They copy numbers to the host, so they are for now and then, not for every step."""

    param_groups: list[dict[str, Any]]
    state: Any

    def pairs(self, group: dict[str, Any]) -> list[Pair]:
        return by_name(names_of(group))

    def get_optimization_info(self) -> dict[str, Any]:
        """Which stages are on, how they are set, and after the first step how far the training is."""
        first = self.param_groups[0]
        info: dict[str, Any] = {
            "optimizer_type": type(self).__name__,
            "version": VERSION,
            "total_params": sum(len(group["params"]) for group in self.param_groups),
            "features": {name: first[name] for name in _FEATURES if name in first},
            "memory_optimization": {"state_bytes_per_param": self._bytes_per_weight(), **_pool()},
        }
        if "adaptation_strength" in first:
            info["adaptation_config"] = {name: first[name] for name in _ADAPTATION}
            info["lr_mask_config"] = {"enabled": first["use_lr_mask"], **{name: first[name] for name in _MASK}}
        if "alora_ratio" in first:
            info |= self._lora_counts()
        steps = max((state.get("step", 0) for state in self.state.values()), default=0)
        if steps:
            ratios = self._numbers("lr_ratio")
            info["training_stats"] = {
                "global_step": steps,
                "total_relationships": sum(len(self.pairs(group)) for group in self.param_groups),
                "avg_importance_score": _mean(self._numbers("importance")),
                "lr_mask_stats": {
                    "total_updates": len(ratios),
                    "positive_updates": sum(ratio > 1 for ratio in ratios),
                    "negative_updates": sum(ratio < 1 for ratio in ratios),
                    "max_lr_scale": max(ratios, default=1.0),
                    "min_lr_scale": min(ratios, default=1.0),
                    "avg_lr_scale": _mean(ratios, 1.0),
                },
            }
        return info

    def get_relationship_summary(self) -> dict[str, Any]:
        """The weights that belong together."""
        found = [
            {
                "param_shape": list(group["params"][pair.first].shape),
                "partner_shape": list(group["params"][pair.second].shape),
                "compatibility": pair.compatibility,
                "joint_importance": _mean([self._number(group["params"][at], "importance") for at in (pair.first, pair.second)]),
                "interaction_type": pair.kind,
            }
            for group in self.param_groups
            for pair in self.pairs(group)
        ]
        return {"total_relationships": len(found), "relationships": found, **({} if found else {"message": _NO_PAIRS})}

    def get_importance_analysis(self) -> dict[str, Any]:
        """How important tensors are, and how many stand out."""
        scores = self._numbers("importance")
        mean = _mean(scores)
        return {
            "total_parameters": len(scores),
            "importance_statistics": {
                "mean": mean, "max": max(scores, default=0.0), "min": min(scores, default=0.0), "std": _deviation(scores),
            },
            "high_importance_params": sum(score > 1.5 * mean for score in scores),
            "low_importance_params": sum(score < 0.5 * mean for score in scores),
        }  # fmt: skip

    def get_lr_mask_analysis(self) -> dict[str, Any]:
        """The ratio of each tensor's learning rate. Fields called scale are ratios; `avg_lr` is a rate."""
        first = self.param_groups[0]
        if not first.get("use_lr_mask"):
            return {"lr_mask_enabled": False, "message": "use_lr_mask is off"}
        rows, warming, latest, warmup = [], 0, 0, first["warmup_steps"]
        for group, index, weight in self._weights():
            ratio, step = self._number(weight, "lr_ratio", 1.0), self.state.get(weight, {}).get("step", 0)
            warming, latest = warming + (step < warmup), max(latest, step)
            rows.append({
                "param_shape": list(weight.shape), "param_id": index, "lr_scale": ratio, "avg_lr": group["lr"] * ratio,
                "warmup_complete": step >= warmup,
            })  # fmt: skip
        ratios = [row["lr_scale"] for row in rows]
        return {
            "lr_mask_enabled": True,
            "configuration": {name: first[name] for name in _MASK},
            "parameter_analysis": rows,
            "global_statistics": {
                "total_parameters": len(rows), "warmup_parameters": warming, "post_warmup_parameters": len(rows) - warming,
                "avg_lr_scale": _mean(ratios, 1.0), "lr_scale_std": _deviation(ratios),
                "lr_scale_range": [min(ratios, default=1.0), max(ratios, default=1.0)],
            },
            "training_phase": {
                "current_step": latest, "in_warmup": latest < warmup, "warmup_progress": min(1.0, latest / max(1, warmup)),
            },
        }  # fmt: skip

    def get_buffer_pool_stats(self) -> dict[str, Any]:
        """There is no pool: PyTorch's allocator keeps what is free."""
        return {"total_buffer_types": 0, "buffer_details": {}, "total_buffers": 0, "estimated_memory_mb": 0.0}

    def clear_buffer_pool(self) -> None:
        """Nothing is held between two steps."""

    def diagnose_lora_pairing(self) -> dict[str, Any]:
        """Of each group, which matrices have a partner and which have none."""
        groups = {}
        for number, group in enumerate(self.param_groups):
            names = names_of(group) or [f"weight {index}" for index in range(len(group["params"]))]
            partners = {}
            for pair in self.pairs(group):
                partners[pair.first], partners[pair.second] = pair.second, pair.first
            details = [
                {
                    "name": name, "type": role(name)[1], "shape": list(weight.shape), "is_paired": index in partners,
                    "paired_with": names[partners[index]] if index in partners else None,
                }
                for index, (name, weight) in enumerate(zip(names, group["params"], strict=True))
            ]  # fmt: skip
            alone = [row for row in details if not row["is_paired"]]
            groups[f"group_{number}"] = {
                "lora_a_count": sum(row["type"] == DOWN for row in details),
                "lora_b_count": sum(row["type"] == UP for row in details),
                "pairs_count": len(partners) // 2,
                "unpaired_a": [{"name": row["name"], "shape": row["shape"]} for row in alone if row["type"] == DOWN],
                "unpaired_b": [{"name": row["name"], "shape": row["shape"]} for row in alone if row["type"] == UP],
                "parameter_details": details,
            }
        return {"total_groups": len(groups), "groups": groups}

    def figures(self) -> dict[str, float]:
        """For trackers: means over all tensors, of what there is."""
        values = {"optimizer/importance": "importance", "optimizer/lr_factor": "factor", "optimizer/lr_mask": "lr_ratio"}
        return {tag: _mean(numbers) for tag, name in values.items() if (numbers := self._numbers(name))}

    def _lora_counts(self) -> dict[str, Any]:
        parts = [role(name)[1] for group in self.param_groups for name in names_of(group)]
        pairs = [pair.kind for group in self.param_groups for pair in self.pairs(group)]
        return {
            "lora_stats": {
                "lora_a_params": parts.count(DOWN), "lora_b_params": parts.count(UP), "lora_pairs": pairs.count(f"{DOWN} and {UP}"),
            },
            "lokr_stats": {
                "lokr_w1_params": parts.count(W1), "lokr_w2_params": parts.count(W2), "lokr_pairs": pairs.count(f"{W1} and {W2}"),
                "other_params": parts.count(OTHER),
            },
        }  # fmt: skip

    def _weights(self) -> Iterator[tuple[dict[str, Any], int, Tensor]]:
        for group in self.param_groups:
            for index, weight in enumerate(group["params"]):
                yield group, index, weight

    def _number(self, weight: Tensor, name: str, absent: float = 0.0) -> float:
        state = self.state.get(weight, {})
        return float(state[name]) if name in state else absent

    def _numbers(self, name: str) -> list[float]:
        return [float(self.state[weight][name]) for _, _, weight in self._weights() if name in self.state.get(weight, {})]

    def _bytes_per_weight(self) -> float:
        held = sum(
            value.numel() * value.element_size() for state in self.state.values() for value in state.values() if isinstance(value, Tensor)
        )
        weights = sum(weight.numel() for _, _, weight in self._weights() if self.state.get(weight))
        return held / weights if weights else 0.0


def _pool() -> dict[str, int]:
    return {"buffer_pool_types": 0, "total_cached_buffers": 0}


def _mean(numbers: Iterable[float], empty: float = 0.0) -> float:
    return statistics.fmean(kept) if (kept := list(numbers)) else empty


def _deviation(numbers: list[float]) -> float:
    return statistics.pstdev(numbers) if numbers else 0.0
