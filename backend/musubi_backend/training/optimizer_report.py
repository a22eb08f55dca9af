"""What an optimizer says of itself (`optimizers/reports.py`), as numbers for trackers and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_ASKED = ("get_optimization_info", "get_relationship_summary", "get_importance_analysis", "get_lr_mask_analysis")
_MOST_LINES = 200


def can_report(optimizer: object) -> bool:
    return hasattr(optimizer, _ASKED[0])


def numbers(optimizer: Any) -> dict[str, float]:
    """The numbers of its reports: "optimizer/importance_statistics/mean". Settings and single weights are left out."""
    found = dict(optimizer.figures())
    for said in _reports(optimizer):
        found |= {f"optimizer/{path}": value for path, value in _flat(said) if type(value) in (int, float)}
    return found


def lines(optimizer: Any) -> tuple[str, ...]:
    """ "importance_statistics / mean: 0.41": all that its reports say, without single weights."""
    said = [f"{path.replace('/', ' / ')}: {_text(value)}" for report in _reports(optimizer) for path, value in _flat(report)]
    return tuple(dict.fromkeys(said))[:_MOST_LINES]


def _reports(optimizer: Any) -> Iterator[Mapping[str, Any]]:
    return (getattr(optimizer, name)() for name in _ASKED)


def _flat(report: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in report.items():
        path = f"{before}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}/")
        elif not (isinstance(value, list) and value and isinstance(value[0], Mapping)):
            yield path, value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)
