"""From widgets to settings, in numbers: strengths, seeds, lengths, sections, presets, shares of prompts, and names of files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

HOST = SimpleNamespace(model_path=lambda key, name: Path("/m", key, name))


@pytest.mark.parametrize(
    ("values", "prefix", "suffix", "made"),
    [
        ({}, "", "", {}),
        ({"lora_1": "none", "multiplier_1": 1.0, "lora_2": ""}, "", "", {}),
        ({"lora_1": "a", "multiplier_1": 0.0}, "", "", {"lora_weight": ["/m/loras/a"], "lora_multiplier": [0.0]}),
        (
            {
                "lora_1": "none",
                "multiplier_1": 3.0,
                "lora_2": "b",
                "multiplier_2": -0.5,
                "lora_3": "c",
                "multiplier_3": None,
                "lora_4": "none",
            },
            "",
            "",
            {"lora_weight": ["/m/loras/b", "/m/loras/c"], "lora_multiplier": [-0.5, 1.0]},
        ),
        (
            {"lora_1": "a", "high_lora_1": "b", "high_multiplier_1": 0.7},
            "high_",
            "_high_noise",
            {"lora_weight_high_noise": ["/m/loras/b"], "lora_multiplier_high_noise": [0.7]},
        ),
    ],
)
def test_loras_go_with_their_own_strengths(part: Any, values: dict[str, Any], prefix: str, suffix: str, made: dict[str, Any]) -> None:
    assert part("nodes.loras").options(HOST, values, prefix, suffix) == made


@pytest.mark.parametrize(
    ("line", "seed", "made"),
    [
        ("a cat", 7, ("a cat --d 7", 7)),
        ("a cat", 2**32 + 1, ("a cat --d 1", 1)),
        ("a cat --d 5", 7, ("a cat --d 5", 5)),
        ("a cat --D 5 --w 64 --d  9", 7, ("a cat --D 5 --w 64 --d  9", 9)),
        ("a cat --w 64", 7, ("a cat --w 64 --d 7", 7)),
    ],
)
def test_a_prompt_keeps_its_seed_or_gets_the_next(part: Any, line: str, seed: int, made: tuple[str, int]) -> None:
    assert part("nodes.prompt_batch").seeded(line, seed) == made


def test_prompts_are_shared_out_and_those_left_open_get_a_process_each(part: Any) -> None:
    batch = part("nodes.prompt_batch")
    prompts = [batch.Prompt(number, str(number), number) for number in range(1, 6)]
    rounds = batch._rounds(prompts, 2)
    assert [[prompt.number for prompt in share] for share in next(rounds)] == [[1, 3, 5], [2, 4]]
    for prompt in prompts[1:]:
        prompt.open, prompt.problem = True, "killed"
    seen = []
    for shares in rounds:
        (share,) = shares
        seen.append(share[0].number)
        assert share[0].problem == ""
        share[0].open = share[0].number != 3
        share[0].problem = "killed again" if share[0].open else ""
    assert seen == [2, 3, 4, 5], "one that goes well begins the count anew"
    assert [prompt.number for prompt in prompts if prompt.open] == [2, 4, 5]
    rounds = batch._rounds(prompts, 1)
    next(rounds)
    assert [shares[0][0].number for shares in rounds] == [2, 4], "after two in a row it is given up"


@pytest.mark.parametrize(
    ("gpus", "device", "prompts", "chosen"),
    [
        (0, "", 9, ["0", "1", "2"]),
        (2, "", 9, ["0", "1"]),
        (0, "", 2, ["0", "1"]),
        (1, "", 9, [None]),
        (0, "", 1, [None]),
        (0, "cpu", 9, [None]),
        (9, "cuda", 9, ["0", "1", "2"]),
    ],
)
def test_no_more_gpus_than_asked_for_and_than_there_are_prompts(part: Any, gpus: int, device: str, prompts: int, chosen: list[Any]) -> None:
    host = SimpleNamespace(gpus=lambda: ["0", "1", "2"])
    assert part("nodes.prompt_batch")._gpus(host, {"gpus": gpus, "device": device}, prompts) == chosen


@pytest.mark.parametrize(
    ("architecture", "made"), [("wan", {"video_length": 45}), ("hv", {"video_length": 45}), ("fp", {"video_seconds": 1.5})]
)
def test_framepack_counts_seconds(part: Any, architecture: str, made: dict[str, Any]) -> None:
    card = part("backend.musubi_backend.architectures").cards()[architecture]
    assert part("nodes.prompt_batch")._length(card, 45) == made and part("nodes.prompt_batch")._length(card, 0) == {}


def test_texts_of_prompts_may_lie_in_lists(part: Any) -> None:
    texts = part("nodes.batch")._texts
    assert texts(None) == [] and texts("a") == ["a"] and texts(["a", ("b", ["c"]), None]) == ["a", "b", "c"]
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="expected texts, found int"):
        texts(["a", 3])


PRESETS = {
    "beta: general": ("beta", 0.9, 0.5, 1.0),
    "beta: converged early": ("beta", 0.95, 1 / 3, 1.0),
    "beta: against overfitting": ("beta", 0.8, 0.5, 5 / 6),
    "sigma_rel: general": ("sigma_rel", 0.2, 0.0, 1.0),
    "sigma_rel: converged early": ("sigma_rel", 0.25, 0.0, 1.0),
    "sigma_rel: against overfitting": ("sigma_rel", 0.15, 0.0, 5 / 6),
}


def test_presets_of_averages(part: Any) -> None:
    found = part("nodes.lora_tools").PRESETS
    assert {name: (one["method"], one[one["method"]], one["first"], one["last"]) for name, one in found.items()} == PRESETS


@pytest.mark.parametrize(
    ("method", "more", "values", "betas", "title"),
    [
        ("beta", "", {"beta": 0.9}, (0.9, 0.9, 0.9), "x: beta 0.9"),
        ("beta to beta2", "", {"beta": 0.9, "beta2": 0.5}, (0.9, 0.7, 0.5), "x: beta 0.9 to 0.5"),
        ("sigma_rel", "", {"sigma_rel": 0.2}, None, "x: sigma_rel 0.2"),
        ("sigma_rel", "0.1, 0.15", {"sigma_rels": [0.2, 0.1, 0.15]}, None, "x: sigma_rel 0.2"),
    ],
)
def test_each_way_of_averaging_is_reported_what_it_uses(
    part: Any, method: str, more: str, values: dict[str, Any], betas: tuple[float, ...] | None, title: str
) -> None:
    tools = part("nodes.lora_tools")
    chosen = {"method": method, "beta": 0.9, "beta2": 0.5, "sigma_rel": 0.2, "more_sigma_rel": more}
    assert tools._ema_values(chosen) == values and tools._title(chosen, "x") == title
    assert betas is None or tools._betas(chosen, 3) == pytest.approx(betas)


@pytest.mark.parametrize(
    ("text", "parts", "named"),
    [
        ("a.png", [("", "a.png")], False),
        ("0:a.png;;;-1:b.png", [("0:", "a.png"), ("-1:", "b.png")], True),
        ("2-3:a.png;;;b.png", [("2-3:", "a.png"), ("", "b.png")], True),
        (" 1 : a.png", [("1:", " a.png")], True),
        ("C:a.png", [("", "C:a.png")], False),
    ],
)
def test_a_path_may_say_for_which_section_it_is(part: Any, text: str, parts: list[tuple[str, str]], named: bool) -> None:
    images, widgets = part("nodes.media_inputs"), part("backend.musubi_backend.architectures.widgets")
    start = widgets.Source("image_path", "start_image", "IMAGE", "start_image_path", "", sections=True)
    assert images._parts(start, text) == parts and images.names_sections(text) is named
    assert images._parts(widgets.START, text) == [("", text)]
    assert images._parts(widgets.CONTROL_IMAGES, "a\n\n b\n") == [("", "a"), ("", " b")]


def test_results_are_found_below_and_no_folder_is_used_twice(part: Any, tmp_path: Path) -> None:
    generate = part("nodes.generate")
    for name in ("b.mp4", "sub/a.PNG", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in generate.results(tmp_path)] == ["b.mp4", "a.PNG"]
    assert [generate.fresh_folder(tmp_path).name for _ in range(2)] == ["video_00001", "video_00002"]


@pytest.mark.parametrize(("keeps", "made"), [(True, {}), (False, {"no_metadata": True})])
def test_metadata_is_left_out_where_the_host_says_so(part: Any, keeps: bool, made: dict[str, Any]) -> None:
    assert part("nodes.generate").metadata_values(SimpleNamespace(keeps_metadata=keeps)) == made


def test_widgets_that_are_off_or_unknown_set_nothing(part: Any) -> None:
    spec, widgets = part("nodes.spec"), part("nodes.widgets")
    entries = (
        spec.Input("seed", "INT", "", default=0, option="seed"),
        spec.Input("blocks", "INT", "", default=0, off=0, option="blocks_to_swap"),
        spec.Input("mine", "INT", "", default=0),
        spec.Input("tiling", "BOOLEAN", "", default=False, option="vae_tiling"),
    )
    values = {"seed": 0, "blocks": 0, "mine": 5, "tiling": False}
    assert widgets.settings(entries, values) == {"seed": 0, "vae_tiling": False}
    assert widgets.settings(entries, {**values, "blocks": 3, "seed": None}) == {"blocks_to_swap": 3, "vae_tiling": False}
    assert widgets.applicable(entries, values, "wan_train_network", "Wan") == {"seed": 0}
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="tiling has no effect for Wan: set it back to False"):
        widgets.applicable(entries, {**values, "tiling": True}, "wan_train_network", "Wan")


def test_models_of_another_kind_and_files_that_were_not_chosen_are_named(part: Any) -> None:
    models, error = part("nodes.models"), part("backend.musubi_backend.errors").UserError
    given = {"architecture": "wan", "task": "t2v-14B", "dit": "/d", "vae": "/v"}
    assert models.files_for(given, ("vae",), "caching") == {"vae": "/v"}
    with pytest.raises(error, match="caching needs t5, clip: choose it in Wan Model Paths"):
        models.files_for(given, ("vae", "t5", "clip"), "caching")
    with pytest.raises(error, match="HunyuanVideo Generator makes HunyuanVideo videos, but the models are Wan"):
        models.check_architecture(part("backend.musubi_backend.architectures").cards()["hv"], given, "HunyuanVideo Generator")
    node, host = part("nodes.catalog").BY_NAME["WanModelPaths"](), SimpleNamespace(model_path=lambda folder, name: Path(folder, name))
    chosen = {name: f"{name}.safetensors" for name in ("dit", "vae", "t5", "clip", "dit_high_noise")}
    for task, unused in (("t2v-14B", {"clip", "dit_high_noise"}), ("i2v-14B", {"dit_high_noise"}), ("i2v-A14B", {"clip"})):
        assert set(chosen) - set(node._files(host, {"task": task, **chosen})) == unused
    assert set(node._files(host, chosen)) == set(chosen)
    assert models.model_values(node.card, {**given, "f1": True}, "wan_train_network") == {"task": "t2v-14B", "dit": "/d", "vae": "/v"}
