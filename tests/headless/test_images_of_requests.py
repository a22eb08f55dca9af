"""Images and videos that a generation starts from: from the graph and from paths, handed on as files, and what is rejected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, backend_python: str) -> Path:
    home = tmp_path_factory.mktemp("images 猫")
    (home / "config.json").write_text(json.dumps({"interpreter": backend_python, "engine": "builtin", "allowed_roots": []}))
    return home


def generate(place: Path, task: str, generator: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """One video of a Wan task on the demo models; node 2 gives a frame, node 3 five frames, of a demo clip."""
    nodes = {
        "1": {"class_type": "MusubiTuner_WanModelPaths", "inputs": {"task": task, "dit": "x", "vae": "x", "t5": "x"}},
        "2": {"class_type": "MusubiTuner_VideoInput", "inputs": {"path": "x", "count": 1, "start": 2}},
        "3": {"class_type": "MusubiTuner_VideoInput", "inputs": {"path": "x", "count": 5}},
        "4": {"class_type": "MusubiTuner_WanVideoGenerator", "inputs": {"models": ["1", 0], "prompt": "a pan", **generator}},
    }
    path = place / "workflow.json"
    path.write_text(json.dumps(nodes), encoding="utf-8")
    command = [sys.executable, "-m", "headless", str(path), "--demo", "--home", str(place)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)


def newest_job(place: Path) -> Path:
    return max((place / "jobs").glob("*wan_generate_video*"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.slow
def test_images_of_the_graph_reach_the_backend_as_files_and_paths_are_made_whole(place: Path) -> None:
    result = generate(place, "flf2v-14B", {"start_image": ["2", 0], "end_image_path": "end.png"})
    assert result.returncode == 2 and "end.png does not exist" in result.stderr, "paths are looked at before anything runs"
    import numpy as np
    from PIL import Image

    (place / "input").mkdir()
    Image.fromarray(np.full((40, 70, 3), 90, np.uint8)).save(place / "input" / "end.png")
    result = generate(place, "flf2v-14B", {"start_image": ["2", 0], "end_image_path": "end.png"})
    assert result.returncode == 0, result.stdout + result.stderr
    command = json.loads((newest_job(place) / "command.json").read_text(encoding="utf-8"))["argv"]
    start = Path(command[command.index("--image_path") + 1])
    assert start.is_file()
    assert command[command.index("--end_image_path") + 1] == str(place / "input" / "end.png")
    assert command[command.index("--clip") + 1].endswith("demo_clip_vision.safetensors")


@pytest.mark.slow
@pytest.mark.full(reason="the images of the graph take the same way")
def test_a_control_video_of_the_graph_is_followed(place: Path) -> None:
    result = generate(place, "t2v-1.3B-FC", {"control_video": ["3", 1]})
    assert result.returncode == 0, result.stdout + result.stderr
    command = json.loads((newest_job(place) / "command.json").read_text(encoding="utf-8"))["argv"]
    assert Path(command[command.index("--control_path") + 1]).is_file()


@pytest.mark.parametrize(
    ("task", "inputs", "words"),
    [
        ("t2v-1.3B", {"start_image": ["2", 0]}, "takes no start_image"),
        ("i2v-14B", {}, "needs start_image"),
        ("flf2v-14B", {"start_image": ["2", 0]}, "needs end_image"),
        ("t2v-1.3B-FC", {}, "needs control_video"),
        ("i2v-14B", {"start_image": ["2", 0], "control_video": ["3", 1]}, "takes no control_video"),
        ("i2v-14B", {"start_image": ["2", 0], "control_images": ["2", 0]}, "set one_frame"),
        ("i2v-14B", {"start_image": ["2", 0], "one_frame": "control_index=0"}, "needs control_images"),
        ("t2v-1.3B", {"high_lora_1": "musubi_tuner/a.safetensors"}, "task t2v-1.3B has none"),
    ],
)
def test_what_does_not_go_with_the_task_is_rejected_in_words(
    part: Any, tmp_path: Path, task: str, inputs: dict[str, Any], words: str
) -> None:
    node = part("nodes.catalog").BY_NAME["WanVideoGenerator"]()
    given = part("nodes.checks").complete(node.spec, {"models": {}, "prompt": "x", **inputs})
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match=words):
        node.check_task({"architecture": "wan", "task": task}, given)


def test_one_frame_needs_its_control_images_only(part: Any) -> None:
    node = part("nodes.catalog").BY_NAME["WanVideoGenerator"]()
    inputs = {"models": {}, "prompt": "x", "control_images": ["2", 0], "one_frame": "target_index=1,control_index=0"}
    node.check_task({"architecture": "wan", "task": "i2v-14B"}, part("nodes.checks").complete(node.spec, inputs))


@pytest.mark.parametrize(
    ("name", "models", "inputs", "words"),
    [
        ("FramePackVideoGenerator", {}, {}, "connect start_image"),
        ("FramePackVideoGenerator", {}, {"start_image": "a", "control_images": "b"}, "set one_frame"),
        ("FramePackVideoGenerator", {"f1": True}, {"start_image": "a", "end_image": "b"}, "not F1"),
        ("FramePackVideoGenerator", {}, {"start_image": "a", "end_image": "b", "one_frame": "default"}, "single frame"),
        ("HunyuanVideoGenerator", {}, {"start_image": "a"}, "image-to-video transformer"),
        ("HunyuanVideoGenerator", {"dit_in_channels": 32}, {}, "connect start_image"),
        ("HunyuanVideoGenerator", {"dit_in_channels": 32}, {"start_image": "a", "source_video": "b"}, "exclude each other"),
    ],
)
def test_what_does_not_go_with_the_model_is_rejected_in_words(
    part: Any, name: str, models: dict[str, Any], inputs: dict[str, Any], words: str
) -> None:
    node = part("nodes.catalog").BY_NAME[name]()
    given = part("nodes.checks").complete(node.spec, {"models": {}, "prompt": "x", **inputs})
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match=words):
        node.check_task(models, given)


def test_socket_and_path_exclude_each_other_and_paths_are_guarded(part: Any, tmp_path: Path) -> None:
    host = part("headless.terminal").TerminalHost(tmp_path)
    images, error = part("nodes.media_inputs"), part("backend.musubi_backend.errors").UserError
    widgets = part("backend.musubi_backend.architectures.widgets")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(error, match="use one of them"):
        images.values(host, [widgets.START], {"start_image": str(tmp_path / "a.png"), "start_image_path": "a.png"}, tmp_path)
    for path in ("/etc/passwd", "../../etc/passwd"):
        (problem,) = images.problems(host, [widgets.START], {"start_image_path": path})
        assert problem.input == "start_image_path" and "outside the folders" in problem.text
    several = images.values(host, [widgets.CONTROL_IMAGES], {"control_image_paths": "a.png\n\na.png\n"}, tmp_path)
    assert several == {"control_image_path": [str(tmp_path / "a.png")] * 2}


def test_images_of_samples_keep_their_name_while_they_are_the_same(part: Any, tmp_path: Path) -> None:
    import numpy as np

    host, images = part("headless.terminal").TerminalHost(tmp_path), part("nodes.media_inputs")
    widgets = part("backend.musubi_backend.architectures.widgets")
    frame = host.images([np.full((8, 8, 3), 7, np.uint8)], host.temp_dir / "a")
    again = host.images([np.full((8, 8, 3), 7, np.uint8)], host.temp_dir / "b")
    other = host.images([np.full((8, 8, 3), 8, np.uint8)], host.temp_dir / "c")
    names = [images.kept(host, [widgets.START], {"start_image": image})["image_path"] for image in (frame, again, other)]
    assert names[0] == names[1] != names[2]
    assert all(Path(name).parent == tmp_path / "pictures" and Path(name).is_file() for name in names)


def test_images_of_single_sections(part: Any, tmp_path: Path) -> None:
    host, node = part("headless.terminal").TerminalHost(tmp_path), part("nodes.catalog").BY_NAME["FramePackVideoGenerator"]()
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")

    def resolved(**inputs: Any) -> Any:
        return node.images(host, part("nodes.checks").complete(node.spec, {"models": {}, "prompt": "x", **inputs}), tmp_path)

    first, second = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    assert resolved(start_image_path="a.png") == {"image_path": first}
    assert resolved(start_image_path="0:a.png;;;-1:b.png") == {"image_path": f"0:{first};;;-1:{second}"}
    assert resolved(start_image_path="a.png", section_images=second, section_numbers="-1") == {"image_path": f"0:{first};;;-1:{second}"}
    error = part("backend.musubi_backend.errors").UserError
    with pytest.raises(error, match="give as many"):
        resolved(start_image_path="a.png", section_images=second, section_numbers="1, 2")
    with pytest.raises(error, match="names images of sections already"):
        resolved(start_image_path="-1:a.png", section_images=second, section_numbers="1")
