"""Steps of a workflow on a terminal: items of lists, exit codes, what the store keeps, and what is left out."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def host(part: Any, tmp_path: Path) -> Any:
    return part("headless.terminal").TerminalHost(tmp_path, screen=part("headless.terminal").Screen(io.StringIO()))


def step(part: Any, key: str, run: Any, inputs: tuple[Any, ...] = (), many: bool = False, links: dict[str, Any] | None = None) -> Any:
    """A step whose node gives what `run` makes of its inputs."""
    spec = part("nodes.spec")

    async def give(self: Any, host: Any, **given: Any) -> Any:
        return spec.Result((run(**given),), text=f"{key} ran")

    made = spec.NodeSpec(key, key, "", "", inputs, (spec.Output("out", "STRING", "", many=many),))
    node = type(key, (spec.Node,), {"spec": made, "run": give})()
    return part("headless.workflow").Step(key, key, node, {}, links or {})


def test_items_of_lists_go_one_by_one_and_the_last_of_a_short_list_repeats(part: Any, host: Any) -> None:
    entry, seen = part("nodes.spec").Input, []
    steps = {
        "long": step(part, "long", lambda: ["a", "b", "c"], many=True),
        "short": step(part, "short", lambda: ["1", "2"], many=True),
        "each": step(
            part,
            "each",
            lambda x, y: seen.append((x, y)),
            (entry("x", "STRING", ""), entry("y", "STRING", "")),
            links={"x": ("long", 0), "y": ("short", 0)},
        ),
    }
    assert asyncio.run(part("headless.run").run(steps, host)) == 0
    assert seen == [("a", "1"), ("b", "2"), ("c", "2")]


def test_what_is_made_of_items_is_a_list_again(part: Any, host: Any) -> None:
    entry, seen = part("nodes.spec").Input, []
    steps = {
        "list": step(part, "list", lambda: ["a", "b"], many=True),
        "each": step(part, "each", lambda x: x.upper(), (entry("x", "STRING", ""),), links={"x": ("list", 0)}),
        "next": step(part, "next", lambda x: seen.append(x), (entry("x", "STRING", ""),), links={"x": ("each", 0)}),
        "all": step(part, "all", lambda x: seen.append(tuple(x)), (entry("x", "X", "", many=True),), links={"x": ("each", 0)}),
    }
    assert asyncio.run(part("headless.run").run(steps, host)) == 0
    assert sorted(seen, key=str) == [("A", "B"), "A", "B"]


def test_an_empty_list_is_an_error_that_names_the_input(part: Any, host: Any) -> None:
    entry = part("nodes.spec").Input
    steps = {
        "list": step(part, "list", list, many=True),
        "each": step(part, "each", lambda x: x, (entry("x", "STRING", ""),), links={"x": ("list", 0)}),
    }
    assert asyncio.run(part("headless.run").run(steps, host)) == 1
    assert "ERROR in each: each: x got an empty list" in host.screen.stream.getvalue()


def test_a_result_is_kept_until_a_value_a_source_or_what_it_looks_at_changes(part: Any, host: Any) -> None:
    entry, ran, looked = part("nodes.spec").Input, [], ["one"]
    spec = part("nodes.spec")

    def steps(value: str = "a", slot: int = 0) -> dict[str, Any]:
        source = step(part, "source", lambda x: x, (entry("x", "STRING", ""),))
        source.constants["x"] = value
        type(source.node).spec = spec.NodeSpec(
            "source", "source", "", "", source.node.spec.inputs, (spec.Output("p", "X"), spec.Output("q", "X"))
        )

        async def give(self: Any, host: Any, **given: Any) -> Any:
            ran.append("source")
            return spec.Result((given["x"], given["x"]), text="made")

        type(source.node).run = give
        after = step(part, "after", lambda x: ran.append("after"), (entry("x", "X", ""),), links={"x": ("source", slot)})
        type(after.node).fingerprint = lambda self, host, **constants: looked[0]
        return {"source": source, "after": after}

    def run(fresh: bool = False, **changes: Any) -> list[str]:
        ran.clear()
        assert asyncio.run(part("headless.run").run(steps(**changes), host, fresh=fresh)) == 0
        return list(ran)

    assert run() == ["source", "after"] and run() == []
    assert "source  nothing changed, kept: made" in host.screen.stream.getvalue()
    assert run(value="b") == ["source", "after"] and run() == [], "both are kept"
    assert run(slot=1) == ["after"]
    looked[0] = "two"
    assert run() == ["after"]
    assert run(fresh=True) == ["source", "after"]


def late_steps(part: Any, ran: list[str], others: int = 0, problem: str | None = "not these settings") -> dict[str, Any]:
    """A trainer whose caches are made late, and who rejects its settings; `others` need the caches too."""
    entry = part("nodes.spec").Input
    steps = {
        "cache": step(part, "cache", lambda: ran.append("cache")),
        "settings": step(part, "settings", lambda: ran.append("settings")),
        "trainer": step(
            part,
            "trainer",
            lambda **given: ran.append("trainer"),
            (entry("cache", "X", "", late=True, optional=True), entry("settings", "X", "", optional=True)),
            links={"cache": ("cache", 0), "settings": ("settings", 0)},
        ),
    }
    type(steps["trainer"].node).precheck = lambda self, host, **inputs: problem
    for number in range(others):
        name = f"other {number}"
        steps[name] = step(
            part, name, lambda **given: ran.append("other"), (entry("x", "X", "", optional=True),), links={"x": ("cache", 0)}
        )
    return steps


def test_what_is_made_late_is_not_made_for_a_node_that_rejects_its_settings(part: Any, host: Any) -> None:
    ran: list[str] = []
    assert asyncio.run(part("headless.run").run(late_steps(part, ran), host)) == 1
    assert ran == ["settings"]
    said = host.screen.stream.getvalue()
    assert "ERROR in trainer: not these settings" in said and "cache: not run, because what it is for was rejected" in said


def test_it_is_made_where_another_node_needs_it_or_all_is_well(part: Any, host: Any) -> None:
    ran: list[str] = []
    assert asyncio.run(part("headless.run").run(late_steps(part, ran, problem=None), host)) == 0
    assert ran == ["settings", "cache", "trainer"]
    ran.clear()
    assert asyncio.run(part("headless.run").run(late_steps(part, ran, others=1), host, fresh=True)) == 1
    assert sorted(ran) == ["cache", "other", "settings"]


def test_an_error_of_the_disk_is_said_in_words(part: Any, host: Any) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device", "/out/a.mp4")

    assert asyncio.run(part("headless.run").run({"bad": step(part, "bad", fail)}, host)) == 1
    said = host.screen.stream.getvalue()
    assert said == "ERROR in bad: /out/a.mp4: there is no space left on the disk: make room, then run this again\n"


def test_all_mistakes_of_all_nodes_are_said_before_anything_runs(part: Any, host: Any) -> None:
    entry = part("nodes.spec").Input
    number = (entry("n", "INT", "", default=1, minimum=1, maximum=3), entry("m", "INT", "", default=1, minimum=1))
    steps = [
        step(part, name, lambda **given: None, number, links={"m": ("zero", 0)} if name == "linked" else {})
        for name in ("a", "b", "linked")
    ]
    for one, constants in zip(steps, ({"n": 4}, {"colour": 1}, {"n": 0, "m": 0}), strict=True):
        one.constants.update(constants)
    with pytest.raises(part("backend.musubi_backend.errors").UserError) as caught:
        part("headless.run")._check(steps, host)
    assert str(caught.value).splitlines() == [
        "a: n: 4 is above the maximum 3", "b has no input colour; it has n, m", "linked: n: 0 is below the minimum 1",
    ]  # fmt: skip
    part("headless.run")._check([step(part, "fine", lambda **given: None, number)], host)


def test_afresh_means_a_run_of_its_own_for_every_training(part: Any) -> None:
    entry = part("nodes.spec").Input
    steps = {
        "a": step(part, "a", lambda **given: None, (entry("run_id", "INT", "", default=0),)),
        "b": step(part, "b", lambda **given: None),
    }
    part("headless.run")._renew(steps)
    assert steps["a"].constants["run_id"] > 1_700_000_000 and not steps["b"].constants


def test_a_failed_node_is_counted_and_what_needs_it_is_not_run(part: Any, host: Any) -> None:
    ran: list[str] = []

    def fail() -> None:
        raise part("backend.musubi_backend.errors").UserError("it went wrong")

    entry = part("nodes.spec").Input
    steps = {
        "bad": step(part, "bad", fail),
        "after": step(part, "after", lambda x: ran.append("after"), (entry("x", "STRING", ""),), links={"x": ("bad", 0)}),
        "beside": step(part, "beside", lambda: ran.append("beside")),
    }
    assert asyncio.run(part("headless.run").run(steps, host)) == 1
    assert ran == ["beside"]
    said = host.screen.stream.getvalue()
    assert "ERROR in bad: it went wrong" in said and "after: not run, because node bad did not give its x" in said


def test_the_exit_code_says_that_a_node_failed(part: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"interpreter": "/nowhere/python"}), encoding="utf-8")
    (tmp_path / "clips").mkdir()
    workflow = tmp_path / "x.json"
    workflow.write_text(json.dumps({"1": {"class_type": "MusubiTuner_DatasetConfig", "inputs": {"path": "clips"}}}), encoding="utf-8")
    assert part("headless.run").run_file(workflow, [], (), tmp_path) == 1
    assert "the backend is not installed yet" in capsys.readouterr().out


def test_the_store_keeps_the_newest_results(part: Any, tmp_path: Path) -> None:
    run, result = part("headless.run"), part("nodes.spec").Result
    store = run.ResultStore(tmp_path)
    store._entries = {str(number): {} for number in range(run._KEPT_RESULTS)}
    store.put("new", result(("x",)))
    assert run.ResultStore(tmp_path).get("new").values == ("x",)
    assert "0" not in store._entries and len(store._entries) == run._KEPT_RESULTS
    store.put("1", result(("y",)))
    assert list(store._entries)[-1] == "1", "what was made again is the newest"


def test_bypassed_and_muted_nodes_are_left_out_and_others_not(part: Any, tmp_path: Path) -> None:
    data = {"nodes": [{"id": mode, "type": "MusubiTuner_BackendInfo", "mode": mode} for mode in (0, 2, 4)], "links": []}
    file = tmp_path / "x.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    assert set(part("headless.workflow").read(file)) == {"0"}


def test_a_widget_set_on_the_terminal_wins_over_its_link(part: Any) -> None:
    workflow = part("headless.workflow")
    made = step(part, "one", lambda **given: None, (part("nodes.spec").Input("x", "INT", "", default=1),), links={"x": ("zero", 0)})
    workflow.override({"one": made}, ["one.x=5"])
    assert made.constants == {"x": 5} and made.links == {}


def test_a_link_to_an_output_that_is_not_there_is_rejected(part: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    outputs = len(part("nodes.dataset").DatasetConfig.spec.outputs)
    for slot, fits in ((outputs - 1, True), (outputs, False)):
        nodes = {
            "1": {"class_type": "MusubiTuner_DatasetConfig", "inputs": {"path": "x"}},
            "2": {"class_type": "MusubiTuner_VAELatentCache", "inputs": {"dataset": ["1", slot]}},
        }
        file.write_text(json.dumps(nodes), encoding="utf-8")
        if fits:
            assert part("headless.workflow").read(file)["2"].links == {"dataset": ("1", slot)}
        else:
            with pytest.raises(part("backend.musubi_backend.errors").UserError, match="has no such output"):
                part("headless.workflow").read(file)
