"""Typed settings are the option table's: each field is an option of the same name, type and default, in one concern only."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
from musubi_backend.lora.settings import NetworkSettings
from musubi_backend.options.option import GENERATE, TRAIN, Option, steps_or_share
from musubi_backend.options.parser import read
from musubi_backend.options.registry import tool, tools
from musubi_backend.options.settings import Settings, is_concern
from musubi_backend.options.values import default_of
from musubi_backend.training.settings import TrainingSettings

VERBS: dict[str, tuple[type[Settings], ...]] = {TRAIN: (TrainingSettings,)}
OTHER_VERBS = {TRAIN: (GENERATE,)}
"""Whose options the concerns may also hold, as they are shared."""
READ_ELSEWHERE = {
    TRAIN: (
        *("config_file", "cpu_threads"),  # before there are settings
        *("sdpa", "flash_attn", "flash3", "xformers", "split_attn", "base_weights", "base_weights_multiplier", "skip_mismatched"),
        *("vae_dtype", "task", "timestep_boundary", "offload_inactive_dit", "dit_high_noise"),
        *("vae_cache_cpu", "t5", "fp8_t5", "clip", "one_frame", "dit_dtype", "dit_in_channels", "vae_tiling", "vae_chunk_size"),
        *("vae_spatial_tile_sample_min_size", "text_encoder1", "text_encoder2", "text_encoder_dtype", "fp8_llm", "image_encoder"),
        *("bulk_decode", "latent_window_size", "f1"),
    )
}
"""What an architecture reads by itself while it loads a model or looks at a request."""


def options_of(verb: str) -> dict[str, list[Option]]:
    found: dict[str, list[Option]] = {}
    for one in tools().values():
        for option in one.options if one.verb == verb else ():
            found.setdefault(option.name, []).append(option)
    return found


def concerns(root: type[Settings]) -> Iterator[type[Settings]]:
    yield root
    for kind in get_type_hints(root).values():
        if is_concern(kind):
            yield from concerns(kind)


def fields_of(verb: str) -> list[tuple[str, Any, Any]]:
    """(name, type, default) of every field that is an option."""
    return [
        (field.name, kind, field.default)
        for root in VERBS[verb]
        for concern in concerns(root)
        for field in fields(concern)
        if not is_concern(kind := get_type_hints(concern)[field.name])
    ]


def type_of(option: Option) -> Any:
    kind: Any = {steps_or_share: int | float}.get(option.kind, option.kind)  # type: ignore[call-overload]
    return kind if option.nargs is None else tuple[kind, ...]


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_is_in_one_concern(verb: str) -> None:
    counted = Counter(name for name, _, _ in fields_of(verb))
    assert [name for name, count in counted.items() if count > 1] == []
    wanted = {name for name, found in options_of(verb).items() if not all(option.no_effect or option.unsupported for option in found)}
    elsewhere = READ_ELSEWHERE[verb]
    assert wanted - counted.keys() == set(elsewhere), "read by a concern, or named here with whoever reads it"
    shared = {name for other in OTHER_VERBS[verb] for name in options_of(other)}
    assert counted.keys() <= wanted | shared, "a field is called as an option is"


@pytest.mark.parametrize("verb", VERBS)
def test_fields_have_the_types_and_defaults_of_their_options(verb: str) -> None:
    for name, kind, default in fields_of(verb):
        found = options_of(verb).get(name) or [option for other in OTHER_VERBS[verb] for option in options_of(other).get(name, [])]
        for option in found:
            value, maybe = default_of(option), NoneType in get_args(kind)
            (plain,) = set(get_args(kind)) - {NoneType} if maybe else {kind}
            assert plain == type_of(option), f"{name}: {kind} and the option's {type_of(option)}"
            assert default is not MISSING
            if maybe or value is not None:
                assert default == value, f"{name}: {default!r} and the option's {value!r}"
            else:
                assert not default, f"{name} is not given: that is nothing, not {default!r}"


def test_settings_are_read_by_name_and_cannot_be_changed_in_place() -> None:
    words = ["--network_dim", "8", "--network_args", "a=1", "b=2", "--sdpa", "--blocks_to_swap", "3", "--lora_per_expert"]
    settings = TrainingSettings.read(read(tool("wan_train_network"), words))
    assert settings.network == NetworkSettings(network_dim=8, network_args=("a=1", "b=2"), lora_per_expert=True)
    assert settings.memory.blocks_to_swap == 3 and settings.saving.output_dir == "" and settings.models.vae is None
    assert settings.values()["network_args"] == ["a=1", "b=2"], "as a command line gives it"
    with pytest.raises(AttributeError):
        settings.network.network_dim = 4  # type: ignore[misc]
    other = settings.changed(network_dim=4, seed=1)
    assert (other.network.network_dim, other.length.seed, settings.network.network_dim) == (4, 1, 8)
    with pytest.raises(AssertionError, match="netwrok"):
        settings.changed(netwrok_dim=4)


def test_what_a_tool_does_not_have_keeps_the_default_of_its_field() -> None:
    @dataclass(frozen=True)
    class Some(Settings):
        known: int | None = 3
        needed: str = ""
        absent: bool = False

    assert Some.read(Namespace(known=None, needed=None, other=1)) == Some(None, "", False)
