"""Of every widget of every node: a wrong value is one problem, on that widget, in a sentence of readable length; nothing else is raised."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

TEXTS = (
    "\ud800", "x" * 5000, "/".join(["a" * 200] * 40), "a\0b", "~", "C:\\x", "\\\\server\\share", "//server/share", " ", "\n", "..", ".",
    "/", "a\nb", "--", "--x", "[", "{", "%s", "CON.txt", "\u202e", "1e999", "nan", ",,", "-1", "\udcff", 3, True, [], {},
)  # fmt: skip
WRONG: dict[str, tuple[Any, ...]] = {
    "INT": ("x", 1.5, True, [1], {}, 10**30), "FLOAT": ("x", float("nan"), float("inf"), True, [1], 1e30), "BOOLEAN": ("x", 1, [], None),
    "COMBO": ("no such choice", "", 3, "../x"), "STRING": (),
}  # fmt: skip
NODES = (
    "DatasetConfig", "DatasetConfigLoader", "CaptionImages", "DatasetViewer", "VAELatentCache", "TextEncoderCache", "WanModelPaths",
    "HunyuanVideoModelPaths", "FramePackModelPaths", "LoRATrainingConfig", "OptimizerConfig", "SamplingConfig", "ExpertSettings",
    "HunyuanVideoLoRATrainer", "FramePackLoRATrainer", "WanVideoGenerator", "HunyuanVideoGenerator", "FramePackVideoGenerator",
    "VideoInput", "VideoOutput", "VideoComparison", "BatchProcessor", "LoRAPostHocEMA", "LoRAFormatConverter", "LoRAMerger",
    "LoRAExtractor", "BackendInfo", "TrainingMonitor", "WanLoRATrainer", "TensorBoard", "ResourceMonitor", "CompareCheckpoints",
    "MemoryOptimizer",
)  # fmt: skip


@pytest.fixture(scope="module")
def host(part: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home: Path = tmp_path_factory.mktemp("home")
    (home / "input").mkdir()
    terminal = part("headless.terminal")
    return terminal.TerminalHost(home, screen=terminal.Screen(io.StringIO()))


def test_these_are_all_nodes(part: Any) -> None:
    assert {node.spec.id for node in part("nodes.catalog").NODES} == {f"MusubiTuner_{name}" for name in NODES}


@pytest.mark.parametrize("name", NODES)
def test_a_wrong_value_is_one_problem_on_its_widget(part: Any, host: Any, name: str) -> None:
    check, refused = part("nodes.checks").check, part("backend.musubi_backend.errors").UserError
    node = part("nodes.catalog").BY_NAME[name]()
    usual = {entry.name: entry.default for entry in node.spec.inputs if entry.is_widget and entry.default is not None}
    unset = {problem.input for problem in check(node, host, usual)}  # an empty path, a model that is not there
    for entry in node.spec.inputs:
        bounds = [value + step for value, step in ((entry.minimum, -1), (entry.maximum, 1)) if value is not None]
        outside = [value for value in bounds if value != entry.off]
        for value in (*WRONG[entry.kind], *outside, *(TEXTS if entry.kind == "STRING" else ())) if entry.is_widget else ():
            problems = check(node, host, {**usual, entry.name: value})
            found = [problem for problem in problems if problem.input == entry.name or problem.input not in unset]
            assert [problem.input for problem in found] == ([entry.name] if entry.kind != "STRING" or found else []), (entry.name, value)
            assert all(len(problem.text) < 1100 for problem in found), (entry.name, value)
            right = {key: one for key, one in {**usual, entry.name: value}.items() if key not in {one.input for one in problems}}
            try:
                node.fingerprint(host, **right)
            except refused:
                continue


CONTRADICTIONS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("DatasetConfig", {"one_frame_control_indices": "0"}, "one_frame_control_indices"),
    ("DatasetConfig", {"one_frame_no_post": True}, "one_frame_no_post"),
    ("DatasetConfig", {"one_frame_target_index": 1}, "one_frame_target_index"),
    ("DatasetConfig", {"source": "video JSONL", "control_directory": "controls"}, "control_directory"),
    ("LoRAPostHocEMA", {"preset": "beta: general", "more_sigma_rel": "0.1"}, "more_sigma_rel"),
    ("LoRAPostHocEMA", {"preset": "as set below", "first": 0.5, "last": 0.5}, "first"),
    ("LoRATrainingConfig", {"w8a8": "int8", "fp8_base": True}, "w8a8"),
    ("LoRATrainingConfig", {"keep_attention_blocks": 4, "compile": True, "split_attn": True}, "keep_attention_blocks"),
    ("LoRATrainingConfig", {"offload_attention_blocks": 4, "compile": True, "attention": "xformers"}, "offload_attention_blocks"),
    ("LoRATrainingConfig", {"offload_attention_blocks": 4, "gradient_checkpointing": False}, "offload_attention_blocks"),
    ("LoRATrainingConfig", {"blocks_to_swap": 4, "compile": True, "gradient_checkpointing": False}, "blocks_to_swap"),
)


@pytest.mark.parametrize(("name", "changes", "widget"), CONTRADICTIONS)
def test_widgets_that_contradict_are_one_problem_before_the_node_runs(
    part: Any, host: Any, name: str, changes: dict[str, Any], widget: str
) -> None:
    (host.input_dir / "controls").mkdir(exist_ok=True)
    node = part("nodes.catalog").BY_NAME[name]()
    usual = {entry.name: entry.default for entry in node.spec.inputs if entry.is_widget and entry.default is not None}
    problems = part("nodes.checks").check(node, host, {**usual, **changes})
    assert [problem.input for problem in problems if problem.input != "path"] == [widget], problems


def test_what_a_preset_decides_is_not_judged_by_the_widgets(part: Any, host: Any) -> None:
    node = part("nodes.catalog").BY_NAME["LoRAPostHocEMA"]()
    values = {"preset": "sigma_rel: general", "method": "beta", "more_sigma_rel": "0.1", "first": 0.9, "last": 0.1, "output_name": "x"}
    assert part("nodes.checks").check(node, host, values) == []
