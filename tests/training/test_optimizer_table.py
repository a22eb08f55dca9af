"""The table of optimizers: names as people write them, answers to what is not in it, and entries that say what their class takes."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest
from musubi_backend.errors import UserError
from musubi_backend.optimizers import registry
from musubi_backend.optimizers.entry import Entry
from musubi_backend.optimizers.table.retired import RETIRED
from musubi_backend.training import optimizers
from musubi_backend.training.settings import OptimizerSettings


def loaded(entry: Entry) -> Any:
    """The class of an entry; skips where its package is not installed."""
    if entry.needs:
        pytest.importorskip(entry.needs, reason=f"{entry.needs} is not installed; install.py --with optimizers has it")
    return optimizers._load(entry, entry.name)


def test_names_are_unambiguous_without_case_and_separators() -> None:
    names = [registry.plain(name) for entry in registry.ENTRIES for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names)) and not set(names) & RETIRED.keys()
    for written in ("adamw_8bit", "Adam-W8BIT", "ADAMW8bit"):
        found = registry.find(written)
        assert found is not None and found.name == "AdamW8bit"


def test_an_unknown_name_lists_all_and_the_nearest() -> None:
    with pytest.raises(UserError) as nearest:
        optimizers.check(OptimizerSettings(optimizer_type="adafctor"))
    assert "did you mean 'Adafactor'?" in str(nearest.value) and all(name in str(nearest.value) for name in registry.names())


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("library.custom_hina_adaptive_adamw_optimizer.AdaptiveHinaAdamW", "AdaptiveHinaAdamW"),
        ("HinaAdaptiveAdamW8bit", "AdaptiveHinaAdamW8bit"),
        ("HinaAdamWOptimizer8bit", "HinaAdamW8bit"),
        ("CustomAdamW", "HinaAdamW"),
        ("CameAMP8bit", "Automagic_CameAMP8bit"),
        ("Automagic_CameAMP_8Bit", "Automagic_CameAMP8bit"),
        ("Automagic_CameAMP_COptim8bit", "Automagic_CameAMP_COptim8bit"),
        ("COptim8bit", "COptim8bit"),
        ("AutoMagic", "Automagic"),
        ("Automagic_Sinkgd", "SinkGD"),
        ("HinaANLO", "ANLO"),
    ],
)
def test_names_of_sd_scripts_are_answered(written: str, name: str) -> None:
    found = registry.find(written)
    assert found is not None and found.name == name


def test_retired_names_say_what_to_take_instead() -> None:
    for name, answer in RETIRED.items():
        named = [word.strip(",;.") for word in answer.rpartition("use ")[2].split()]
        assert registry.find(named[0]) is not None, f"{name} is answered with {named[0]}"
        with pytest.raises(UserError, match="use "):
            optimizers.check(OptimizerSettings(optimizer_type=name))


@pytest.mark.parametrize("entry", registry.ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_lists_what_its_class_takes_with_the_same_defaults(entry: Entry) -> None:
    for argument in entry.arguments:
        argument.check(argument.default)
    for preset in entry.presets.values():
        registry.check_values(entry, {name: value for name, value in preset.items() if name != "learning_rate"})
    parameters = inspect.signature(loaded(entry)).parameters
    listed = {argument.name: argument.default for argument in (*entry.arguments, *entry.hidden)}
    assert {name: parameters[name].default for name in listed} == listed
    assert set(entry.fixed) <= parameters.keys()
    if entry.ours:
        assert parameters.keys() - {"params", "lr"} - entry.fixed.keys() == set(listed)


def test_what_the_table_does_not_list_is_refused_before_a_library_is_asked() -> None:
    entry = registry.find("lion")
    assert entry is not None
    with pytest.raises(UserError) as refused:
        registry.check_values(entry, {"weight_decai": 0.1})
    for words in ("Lion has no such argument", "did you mean 'weight_decay'?", "betas, weight_decay", "pytorch_optimizer.Lion"):
        assert words in str(refused.value)
    with pytest.raises(UserError, match="from 0 to 10"):
        registry.check_values(entry, {"weight_decay": -1})


def test_the_table_needs_no_torch() -> None:
    for name in ("entry", "registry", "table.usual", "table.family", "table.libraries", "table.eight_bit", "table.retired"):
        source = inspect.getsource(importlib.import_module(f"musubi_backend.optimizers.{name}"))
        assert "import torch" not in source
