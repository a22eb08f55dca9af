"""Workflows run on a terminal with the real backend: results, reuse, errors, stopping and resuming."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(home: Path, *arguments: str, workflow: Path | None = None) -> list[str]:
    return [sys.executable, "-m", "headless", str(workflow or ROOT / "workflows" / "quickstart.json"), "--home", str(home), *arguments]


def run(home: Path, *arguments: str, workflow: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(home, *arguments, workflow=workflow),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def jobs_of(home: Path, tool: str) -> list[Path]:
    return sorted(path for path in (home / "jobs").iterdir() if f"-{tool}-" in path.name)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends Ctrl-C as a signal")
def test_ctrl_c_saves_the_state_leaves_no_process_and_the_next_run_resumes(home: Path, training_only: Path) -> None:
    settings = json.loads((home / "config.json").read_text(encoding="utf-8"))  # as it is shipped: no process but those of the job
    (home / "config.json").write_text(json.dumps({**settings, "interpreter": sys.executable}), encoding="utf-8")
    training = command(home, "--set", "LoRATrainingConfig.max_train_steps=100000", workflow=training_only)
    process = subprocess.Popen(training, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stdout is not None
    for line in process.stdout:
        if "Trainer" in line and "loss" in line:
            break
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait() == 130
    assert "Run it again" in rest
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    folder = next((home / "runs").iterdir())
    states = [path for path in folder.iterdir() if path.name.endswith("-state")]
    assert states
    assert json.loads((jobs_of(home, "wan_train_network")[0] / "status.json").read_text())["outcome"] == "stopped"

    again = subprocess.Popen(training, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    assert again.stdout is not None
    seen = []
    for line in again.stdout:
        seen.append(line)
        if "Trainer" in line and "loss" in line:
            break
    again.send_signal(signal.SIGINT)
    again.stdout.read()
    again.wait()
    assert any("continuing from quickstart-step" in line for line in seen)


def test_bad_input_is_rejected_before_anything_runs(part: Any, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refuse = part("headless.run").run_file
    for setting, words in (
        ("DatasetConfig.path=/etc", "outside the folders"),
        ("DatasetConfig.path=../..", "outside the folders"),
        ("WanModelPaths.dit=demo_wan_vae.sft", "not there"),
        ("without LoRA.width=65", "nearest is 64"),
        ("LoRATrainingConfig.max_train_steps=0", "below the minimum"),
        ("OptimizerConfig.optimizer_args=--output_dir=/x", "name=value"),
        ("WanLoRATrainer.output_name=../x", "file name"),
        ("VideoOutput.filename_prefix=../x", "file name"),
    ):
        assert refuse(ROOT / "workflows" / "quickstart.json", [setting], (), home) == 2, setting
        assert words in capsys.readouterr().err, setting
    assert not (home / "jobs").exists()


def test_a_wrong_model_file_is_rejected_by_name(home: Path) -> None:
    result = run(home, "--set", "WanModelPaths.dit=demo_wan_vae.safetensors")
    assert result.returncode == 2
    assert "Wan VAE" in result.stderr
    assert not (home / "jobs").exists(), "found out before anything runs"


def test_a_missing_backend_says_what_to_do(home: Path) -> None:
    (home / "config.json").unlink()
    result = run(home)
    assert result.returncode == 1
    assert "python install.py" in result.stdout


def run_nodes(home: Path, tmp_path: Path, nodes: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(nodes), encoding="utf-8")
    return run(home, workflow=path)


def dataset(path: str, **more: Any) -> dict[str, Any]:
    widgets = {"path": path, "width": 64, "height": 64, "target_frames": "5", **more}
    return {"class_type": "MusubiTuner_DatasetConfig", "inputs": widgets}


def test_an_error_of_the_backend_names_the_clip_and_what_needs_the_node_is_not_run(home: Path, tmp_path: Path) -> None:
    clip = home / "demo" / "quickstart" / "chessboard.mp4"
    clip.write_bytes(clip.read_bytes()[:200])
    result = run_nodes(home, tmp_path, {"1": dataset("demo/quickstart"), "2": dataset("demo/dataset", previous=["1", 0])})
    assert result.returncode == 1
    assert "chessboard.mp4" in result.stdout
    assert "not run, because" in result.stdout


def test_chained_datasets_with_strange_names_go_into_one_file(home: Path, tmp_path: Path) -> None:
    strange = home / "demo" / 'it\'s "猫" [1] # x'
    shutil.copytree(home / "demo" / "dataset", strange)
    second = dataset(str(strange), frame_extraction="uniform", frame_sample=2, previous=["1", 0])
    result = run_nodes(home, tmp_path, {"1": dataset("demo/dataset"), "2": second})
    assert result.returncode == 0, result.stdout
    assert "2 datasets: 8 videos, 12 windows" in result.stdout


def test_a_dataset_file_can_be_chained_with_a_dataset_of_widgets(home: Path, tmp_path: Path) -> None:
    (home / "mine.toml").write_text(
        f'[general]\nresolution = [64, 64]\ncaption_extension = ".txt"\n[[datasets]]\nvideo_directory = "{home.as_posix()}/demo/dataset"\n'
        f'target_frames = [5, 9]\ncache_directory = "{home.as_posix()}/caches"\n',
        encoding="utf-8",
    )
    loader = {"class_type": "MusubiTuner_DatasetConfigLoader", "inputs": {"path": "mine.toml"}}
    result = run_nodes(home, tmp_path, {"1": loader, "2": dataset("demo/dataset", previous=["1", 0])})
    assert result.returncode == 0, result.stdout
    assert "2 datasets: 8 videos, 12 windows" in result.stdout


def test_the_same_dataset_twice_is_rejected(home: Path, tmp_path: Path) -> None:
    result = run_nodes(home, tmp_path, {"1": dataset("demo/dataset"), "2": dataset("demo/dataset", previous=["1", 0])})
    assert result.returncode == 1
    assert "num_repeats" in result.stdout


def test_an_existing_dataset_file_is_read_and_its_folders_are_guarded(home: Path, tmp_path: Path) -> None:
    toml = home / "input" / "mine.toml"
    toml.parent.mkdir()
    text = '[general]\nresolution = [64, 64]\ncaption_extension = ".txt"\n[[datasets]]\nvideo_directory = "{}"\ntarget_frames = [5]\n'
    loader = {"1": {"class_type": "MusubiTuner_DatasetConfigLoader", "inputs": {"path": "mine.toml"}}}
    toml.write_text(text.format((home / "demo" / "dataset").as_posix()), encoding="utf-8")
    assert "4 videos" in run_nodes(home, tmp_path, loader).stdout

    outside = tmp_path / "outside"
    shutil.copytree(home / "demo" / "dataset", outside)
    toml.write_text(text.format(outside.as_posix()), encoding="utf-8")
    result = run_nodes(home, tmp_path, loader)
    assert result.returncode == 1 and "outside the folders" in result.stdout
    assert "coffee" not in result.stdout, "nothing of what lies outside is reported"

    toml.write_text(text.format("x") + "resolutoin = 3\n", encoding="utf-8")
    result = run_nodes(home, tmp_path, loader)
    assert result.returncode == 1 and "did you mean 'resolution'" in result.stdout


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"video_path": "/etc/passwd", "caption": "x"}', "outside the folders"),
        ('{"video_path": "HOME/a.mp4", "control_path_x_0": "/etc/passwd", "caption": "x"}', "outside the folders"),
        ('{"video_path": "a.mp4", "caption": "x"}', "write whole paths"),
    ],
)
def test_a_list_that_points_out_of_the_roots_is_rejected(home: Path, tmp_path: Path, line: str, words: str) -> None:
    (home / "list.txt").write_text(line.replace("HOME", home.as_posix()) + "\n", encoding="utf-8")
    (home / "mine.toml").write_text(
        f'[[datasets]]\nvideo_jsonl_file = "{home.as_posix()}/list.txt"\ncache_directory = "{home.as_posix()}/c"\n', encoding="utf-8"
    )
    loader = {"class_type": "MusubiTuner_DatasetConfigLoader", "inputs": {"path": "mine.toml"}}
    result = run_nodes(home, tmp_path, {"1": dataset("list.txt", source="video JSONL"), "2": loader})
    assert result.returncode == 1
    assert result.stdout.count(words) == 2


def test_the_installation_is_reported_even_when_something_is_wrong(home: Path, tmp_path: Path) -> None:
    result = run_nodes(home, tmp_path, {"1": {"class_type": "MusubiTuner_BackendInfo", "inputs": {}}})
    assert result.returncode == 0, result.stdout
    assert "engine: builtin" in result.stdout
    assert "GPU:" in result.stdout
