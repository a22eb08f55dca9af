"""Typed settings are the option table's: each field is an option of the same name, type and default, in one concern only; and parsed
arguments end where they are read."""

from __future__ import annotations

import ast
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
from musubi_backend.architectures import cards, protocol
from musubi_backend.architectures.settings import ArchitectureSettings
from musubi_backend.caching.settings import CachingSettings, LatentSettings
from musubi_backend.demo.clips import DemoClipSettings
from musubi_backend.demo.models import DemoModelSettings
from musubi_backend.inference.settings import GenerateSettings
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
    PLAN,
    RESOURCES,
    TENSORBOARD,
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
    PlanSettings,
    ResourceSettings,
    TensorBoardSettings,
    VideoConvertSettings,
    ViewSettings,
)
from musubi_backend.training.settings import TrainingSettings

VERBS: dict[str, tuple[type[Settings], ...]] = {
    CACHE_LATENTS: (LatentSettings,),
    CACHE_TEXT: (CachingSettings,),
    TRAIN: (TrainingSettings,),
    GENERATE: (GenerateSettings,),
    LORA_EMA: (AverageSettings,),
    LORA_CONVERT: (ConvertSettings,),
    LORA_MERGE: (MergeSettings,),
    LORA_COMBINE: (CombineSettings,),
    LORA_EXTRACT: (ExtractSettings,),
    CAPTION: (CaptionSettings,),
    INSPECT_DATASET: (InspectSettings,),
    VIEW_DATASET: (ViewSettings,),
    PLAN: (PlanSettings,),
    VIDEO_CONVERT: (VideoConvertSettings,),
    RESOURCES: (ResourceSettings,),
    TENSORBOARD: (TensorBoardSettings,),
    DEMO_MODELS: (DemoModelSettings,),
    DEMO_DATASET: (DemoClipSettings,),
}
OTHER_VERBS: dict[str, tuple[str, ...]] = {TRAIN: (GENERATE,)}
"""Whose options the concerns may also hold, as they are shared."""
BEFORE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((CACHE_LATENTS, CACHE_TEXT, GENERATE, LORA_COMBINE, LORA_EXTRACT, CAPTION), ("cpu_threads",)),
    TRAIN: ("config_file", "cpu_threads"),
}
"""What is read before there are settings."""
PUBLISHED = {"ckpt_dir"}
"""Stands for the files of a model, which are looked for in it before anything is read."""
HUNYUAN_TOOLS = ("cache_latents", "hv_train_network", "hv_generate_video")


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


def fields_of(*roots: type[Settings]) -> list[tuple[str, Any, Any]]:
    """(name, type, default) of every field that is an option."""
    return [
        (field.name, kind, field.default)
        for root in roots
        for concern in concerns(root)
        for field in fields(concern)
        if not is_concern(kind := get_type_hints(concern)[field.name])
    ]


def own(card_id: str) -> type[Settings]:
    """What an architecture reads by itself."""
    return type(protocol.load(card_id).settings)


def names(*roots: type[Settings]) -> set[str]:
    return {name for name, _, _ in fields_of(*roots)}


def effective(options: Iterable[Option]) -> set[str]:
    return {option.name for option in options if not option.no_effect and not option.unsupported}


def type_of(option: Option) -> Any:
    kind: Any = {steps_or_share: int | float}.get(option.kind, option.kind)  # type: ignore[call-overload]
    if option.nargs is None:
        return kind
    return tuple[(kind,) * option.nargs] if isinstance(option.nargs, int) else tuple[kind, ...]  # type: ignore[misc]


def check_field(name: str, kind: Any, default: Any, found: list[Option]) -> None:
    """found: the options of that name; where their defaults differ, the field's is one of them, as all are given."""
    defaults = [default_of(option) for option in found]
    maybe = NoneType in get_args(kind)
    (plain,) = set(get_args(kind)) - {NoneType} if maybe else {kind}
    for option in found:
        wanted = type_of(option)
        assert plain == wanted or (plain, wanted) == (float, int), f"{name}: {kind} and the option's {wanted}"
    assert default is not MISSING
    if maybe or any(value is not None for value in defaults):
        given = [tuple(value) if isinstance(value, list) else value for value in defaults]
        assert default in given, f"{name}: {default!r} and the options' {given!r}"
    else:
        assert not default, f"{name} is not given: that is nothing, not {default!r}"


def test_every_verb_reads_its_options_as_settings() -> None:
    assert {one.verb for one in tools().values()} == VERBS.keys()


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_is_in_one_concern(verb: str) -> None:
    counted = Counter(name for name, _, _ in fields_of(*VERBS[verb]))
    assert [name for name, count in counted.items() if count > 1] == []
    shared = {name for other in (verb, *OTHER_VERBS.get(verb, ())) for name in options_of(other)}
    assert counted.keys() <= shared, "a field is called as an option is"


@pytest.mark.parametrize("card_id", cards())
def test_every_option_of_an_architecture_is_in_one_concern_of_its_own(card_id: str) -> None:
    counted = Counter(name for name, _, _ in fields_of(own(card_id)))
    assert [name for name, count in counted.items() if count > 1] == []
    mine = {option.name for one in tools().values() if one.architecture == card_id for option in one.options}
    common = names(ArchitectureSettings)
    assert counted.keys() - mine <= common, "it has no fields for options that it lacks"


@pytest.mark.parametrize("name", tools())
def test_every_option_of_a_tool_is_read(name: str) -> None:
    one = tools()[name]
    read = names(*VERBS[one.verb], *((own(one.architecture),) if one.architecture else ()))
    assert effective(one.options) - read - PUBLISHED == set(BEFORE.get(one.verb, ())), (
        "read by a concern, or named here with whoever reads it"
    )


@pytest.mark.parametrize("verb", VERBS)
def test_fields_have_the_types_and_defaults_of_their_options(verb: str) -> None:
    for name, kind, default in fields_of(*VERBS[verb]):
        found = options_of(verb).get(name) or [option for other in OTHER_VERBS.get(verb, ()) for option in options_of(other).get(name, [])]
        check_field(name, kind, default, found)


@pytest.mark.parametrize("card_id", cards())
def test_an_architectures_fields_have_the_types_and_defaults_of_their_options(card_id: str) -> None:
    found: dict[str, list[Option]] = {}
    for one in tools().values():
        for option in one.options if one.architecture == card_id else ():
            found.setdefault(option.name, []).append(option)
    for name, kind, default in fields_of(own(card_id)):
        if name in found:
            check_field(name, kind, default, found[name])


PACKAGE = Path(__file__).parents[2] / "backend" / "musubi_backend"


def takes_arguments(path: Path) -> Iterator[str]:
    """The functions of a module that have a parameter of type Namespace."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if any(one.annotation and "Namespace" in ast.unparse(one.annotation) for one in given):
                yield node.name


def test_parsed_arguments_end_where_a_verb_begins() -> None:
    entries = {PACKAGE / f"{one.module.replace('.', '/')}.py" for one in tools().values()}
    beyond = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "options" and path.name != "__main__.py"
        for name in takes_arguments(path)
        if path not in entries or name != "run"
    }
    assert not beyond
    assert {name for path in entries for name in takes_arguments(path)} == {"run"}


def test_a_setting_that_a_tool_lacks_is_what_its_architecture_says() -> None:
    hunyuan = protocol.load("hv")
    tiled = {tool_name: hunyuan.configured(vars(read(tool(tool_name), []))).settings.values()["vae_tiling"] for tool_name in HUNYUAN_TOOLS}
    assert list(tiled.values()) == [False, False, True], "hv_generate_video always works on tiles"


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
