"""Typed settings are the option table's: each field is an option of the same name, type and default, in one concern only."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
from musubi_backend.caching.settings import CachingSettings, LatentSettings
from musubi_backend.demo.clips import DemoClipSettings
from musubi_backend.demo.models import DemoModelSettings
from musubi_backend.lora.settings import NetworkSettings
from musubi_backend.options.option import (
    CACHE_LATENTS,
    CACHE_TEXT,
    CAPTION,
    DEMO_DATASET,
    DEMO_MODELS,
    GENERATE,
    INSPECT_DATASET,
    LORA_COMBINE,
    LORA_CONVERT,
    LORA_EMA,
    LORA_EXTRACT,
    LORA_MERGE,
    TRAIN,
    VIDEO_CONVERT,
    VIEW_DATASET,
    Option,
    steps_or_share,
)
from musubi_backend.options.parser import read
from musubi_backend.options.registry import tool, tools
from musubi_backend.options.settings import Settings, is_concern
from musubi_backend.options.values import default_of
from musubi_backend.tools.settings import (
    AverageSettings,
    CaptionSettings,
    CombineSettings,
    ConvertSettings,
    ExtractSettings,
    InspectSettings,
    MergeSettings,
    VideoConvertSettings,
    ViewSettings,
)
from musubi_backend.training.settings import TrainingSettings

VERBS: dict[str, tuple[type[Settings], ...]] = {
    CACHE_LATENTS: (LatentSettings,),
    CACHE_TEXT: (CachingSettings,),
    TRAIN: (TrainingSettings,),
    LORA_EMA: (AverageSettings,),
    LORA_CONVERT: (ConvertSettings,),
    LORA_MERGE: (MergeSettings,),
    LORA_COMBINE: (CombineSettings,),
    LORA_EXTRACT: (ExtractSettings,),
    CAPTION: (CaptionSettings,),
    INSPECT_DATASET: (InspectSettings,),
    VIEW_DATASET: (ViewSettings,),
    VIDEO_CONVERT: (VideoConvertSettings,),
    DEMO_MODELS: (DemoModelSettings,),
    DEMO_DATASET: (DemoClipSettings,),
}
OTHER_VERBS: dict[str, tuple[str, ...]] = {TRAIN: (GENERATE,)}
"""Whose options the concerns may also hold, as they are shared."""
READ_ELSEWHERE: dict[str, tuple[str, ...]] = {
    CACHE_LATENTS: (
        *("cpu_threads", "vae", "vae_dtype", "vae_cache_cpu", "vae_tiling", "vae_chunk_size", "vae_spatial_tile_sample_min_size"),
        *("clip", "image_encoder", "i2v", "last_frame", "one_frame", "one_frame_no_2x", "one_frame_no_4x", "f1"),
    ),
    CACHE_TEXT: (
        *("cpu_threads", "num_workers"),  # musubi-tuner's number of threads: captions need none
        *("t5", "fp8_t5", "text_encoder1", "text_encoder2", "fp8_llm", "text_encoder_dtype"),
    ),
    **dict.fromkeys((LORA_COMBINE, LORA_EXTRACT, CAPTION), ("cpu_threads",)),
    TRAIN: (
        *("config_file", "cpu_threads"),  # before there are settings
        *("sdpa", "flash_attn", "flash3", "xformers", "split_attn", "base_weights", "base_weights_multiplier", "skip_mismatched"),
        *("vae_dtype", "task", "timestep_boundary", "offload_inactive_dit", "dit_high_noise"),
        *("vae_cache_cpu", "t5", "fp8_t5", "clip", "one_frame", "dit_dtype", "dit_in_channels", "vae_tiling", "vae_chunk_size"),
        *("vae_spatial_tile_sample_min_size", "text_encoder1", "text_encoder2", "text_encoder_dtype", "fp8_llm", "image_encoder"),
        *("bulk_decode", "latent_window_size", "f1"),
    ),
}
"""What is read before there are settings, and what an architecture reads by itself for a model, an item or a request."""


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
    if option.nargs is None:
        return kind
    return tuple[(kind,) * option.nargs] if isinstance(option.nargs, int) else tuple[kind, ...]  # type: ignore[misc]


def test_every_verb_reads_its_options_as_settings() -> None:
    assert {one.verb for one in tools().values()} - VERBS.keys() == {GENERATE}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_is_in_one_concern(verb: str) -> None:
    counted = Counter(name for name, _, _ in fields_of(verb))
    assert [name for name, count in counted.items() if count > 1] == []
    wanted = {name for name, found in options_of(verb).items() if not all(option.no_effect or option.unsupported for option in found)}
    elsewhere = READ_ELSEWHERE.get(verb, ())
    assert wanted - counted.keys() == set(elsewhere), "read by a concern, or named here with whoever reads it"
    shared = {name for other in OTHER_VERBS.get(verb, ()) for name in options_of(other)}
    assert counted.keys() <= wanted | shared, "a field is called as an option is"


@pytest.mark.parametrize("verb", VERBS)
def test_fields_have_the_types_and_defaults_of_their_options(verb: str) -> None:
    for name, kind, default in fields_of(verb):
        found = options_of(verb).get(name) or [option for other in OTHER_VERBS.get(verb, ()) for option in options_of(other).get(name, [])]
        for option in found:
            value, maybe = default_of(option), NoneType in get_args(kind)
            (plain,) = set(get_args(kind)) - {NoneType} if maybe else {kind}
            assert plain == type_of(option), f"{name}: {kind} and the option's {type_of(option)}"
            assert default is not MISSING
            if maybe or value is not None:
                assert default == (tuple(value) if isinstance(value, list) else value), f"{name}: {default!r} and the option's {value!r}"
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
