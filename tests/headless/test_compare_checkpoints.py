"""Compare Checkpoints: each at every strength on every prompt with one seed and one load, in a grid, a video and the gallery."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from musubi_backend.inference.side_by_side import grid
from musubi_backend.inference.video_file import read_images
from musubi_backend.weights.safetensors_file import load, save_atomic

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def host(part: Any, home: Path) -> Any:
    return part("headless.terminal").TerminalHost(home)


@pytest.fixture
def run_folder(part: Any, home: Path) -> Path:
    """A run with three checkpoints of the demo model, the last one strong, and its job."""
    width = load(home / "demo" / "models" / "demo_wan_t2v.safetensors")["blocks.0.self_attn.q.weight"].shape[0]
    run = home / "runs" / "my_lora-1"
    run.mkdir(parents=True)
    generator = torch.Generator().manual_seed(2)
    for name, step, size in (("my_lora-step00000010", 10, 0.0), ("my_lora-step00000020", 20, 0.0), ("my_lora", 30, 1.0)):
        layer = "lora_unet_blocks_0_self_attn_v"
        factors = {"lora_down": torch.randn(4, width, generator=generator), "lora_up": size * torch.randn(width, 4, generator=generator)}
        state = {f"{layer}.{one}.weight": factor for one, factor in factors.items()} | {f"{layer}.alpha": torch.tensor(4.0)}
        save_atomic(state, run / f"{name}.safetensors", {"ss_steps": str(step)})
    folder = part("nodes.jobs.folder").JobFolder.create(home, "wan_train_network")
    folder.write_task({"tool": "wan_train_network", "training": {"name": "my_lora", "run": "my_lora-1", "values": {}}})
    folder.write_status("ended", outcome="finished")
    return run


def models(home: Path) -> dict[str, Any]:
    files = {"dit": "demo_wan_t2v.safetensors", "vae": "demo_wan_vae.safetensors", "t5": "demo_umt5.safetensors"}
    paths = {name: str(home / "demo" / "models" / file) for name, file in files.items()}
    return {"architecture": "wan", "task": "t2v-1.3B", **paths}


def compared(part: Any, host: Any, **inputs: Any) -> Any:
    node = part("nodes.compare").CompareCheckpoints()
    small = {"width": 32, "height": 32, "video_length": 5, "infer_steps": 1, "guidance_scale": 1.0, "cell_height": 64}
    given = part("nodes.checks").prepared(node, host, {"models": models(host.home), **small, **inputs})
    return asyncio.run(node.run(host, **given))


@pytest.mark.slow
def test_the_template_compares_all_of_them_on_one_load_in_a_grid_and_in_the_gallery(
    part: Any, home: Path, run_folder: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--full", False):
        pytest.skip("four processes that import PyTorch; the parts of it have tests of their own")
    compared = {"prompts": "a cat\na dog --d 7", "at_most": 2, "strengths": "1, 0.5", "seed": 3}
    small = {"width": 32, "height": 32, "video_length": 5, "infer_steps": 1, "guidance_scale": 1.0, "cell_height": 64}
    sets = [f"CompareCheckpoints.{name}={value}" for name, value in {**compared, **small}.items()]
    template = ROOT / "workflows" / "compare_checkpoints.json"
    assert part("headless.run").run_file(template, sets, [], home, demo=True) == 0
    jobs = [path for path in (home / "jobs").iterdir() if "generate" in path.name]
    assert len(jobs) == 1 and (jobs[0] / "log.txt").read_text(encoding="utf-8").count("Loading DiT model(s)") == 1
    files = sorted((run_folder / "comparisons" / "comparison_00001").iterdir())
    assert [path.name.split("_", 1)[1] for path in files] == [
        *["without.mp4"] * 2, *["10_1.mp4"] * 2, *["10_0.5.mp4"] * 2, *["last_1.mp4"] * 2, *["last_0.5.mp4"] * 2
    ]  # fmt: skip
    pictures = [np.array(read_images(path)[0]).astype(int) for path in files]
    assert np.array_equal(pictures[0], pictures[2]) and np.array_equal(pictures[1], pictures[3]), "the same seed; a LoRA of zeros"
    assert not np.array_equal(pictures[0], pictures[1]), "another prompt with a seed of its own"
    strong, weak = (np.abs(pictures[place] - pictures[0]).mean() for place in (6, 8))
    assert strong > weak > 0
    [still] = (home / "temp" / "musubi_tuner").glob("comparison_*/*.png")
    images, rate = read_images(home / "output" / "musubi_tuner" / "comparison_00001.mp4")
    assert images[0].shape == (4 * (28 + 28 + 64 + 8), 3 * (64 + 8) + 8, 3) and rate == 16 and len(images) == 5
    assert read_images(still)[0][0].shape == images[0].shape
    index = part("nodes.jobs.index").index_of(home)
    detail = part("nodes.monitor.details").detail(index, next(job for job in index.jobs() if job["kind"] == "training"), [home])
    assert {(one["step"], detail["prompts"][one["prompt"]]) for one in detail["samples"]} == {
        *((0, text) for text in ("a cat", "a dog --d 7")),
        *((step, f"{text} (strength {s})") for step in (10, 30) for text in ("a cat", "a dog --d 7") for s in ("1", "0.5")),
    }
    assert all(one["url"] for one in detail["samples"])


def test_which_file_each_expert_gets(part: Any, tmp_path: Path) -> None:
    compare, cards = part("nodes.compare"), part("backend.musubi_backend.architectures").cards()
    for name in ("a-low-000002.safetensors", "a-high-000002.safetensors", "b.safetensors"):
        (tmp_path / name).touch()
    low, high, alone = (tmp_path / name for name in ("a-low-000002.safetensors", "a-high-000002.safetensors", "b.safetensors"))
    two = {"dit_high_noise": "x"}
    for path in (low, high):
        assert compare._files(path, cards["wan"], two) == f" --lw {low} --lwh {high}"
        assert compare._files(path, cards["wan"], {}) == f" --lw {low}"
    assert compare._files(alone, cards["wan"], two) == f" --lw {alone} --lwh {alone}"
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="rename it"):
        compare._files(tmp_path / "a --fs 3.safetensors", cards["wan"], {})


@pytest.mark.parametrize(("count", "kept"), [(1, [9]), (2, [0, 9]), (3, [0, 4, 9]), (4, [0, 3, 6, 9]), (99, list(range(10)))])
def test_checkpoints_are_spread_over_the_training_with_the_last(part: Any, count: int, kept: list[int]) -> None:
    assert part("nodes.checkpoints").spread(list(range(10)), count) == kept
    assert part("nodes.checkpoints").spread([5], count) == [5]


def test_a_grid_holds_each_video_in_its_place_and_shorter_ones_stay_at_their_last_image() -> None:
    grey = [[np.full((8, 16, 3), value, np.uint8) for value in values] for values in ((10, 20), (30,), (40,), (50, 60))]
    images = list(grid([grey[:2], grey[2:]], ["one", "two"], ["", ""], 8))
    assert len(images) == 2
    middle = [[int(image[row, column, 0]) for row in (28 + 8 + 4, 28 + 24 + 28 + 12) for column in (16, 40)] for image in images]
    assert middle == [[10, 30, 40, 50], [20, 30, 40, 60]]


def test_what_cannot_be_compared_is_said_before_anything_runs(part: Any, host: Any, home: Path, run_folder: Path) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"prompts": ""}, "there are no prompts"),
        ({"strengths": "strong"}, "not a list of numbers"),
        ({"strengths": "1e9"}, "from -100 to 100"),
        ({"prompts": "a --i /etc/passwd"}, "outside the folders"),
        ({"checkpoints": "/etc"}, "outside the folders"),
        ({"training": "none"}, "connect a trainer's job"),
        ({"prompts": "a\n" * 60}, "and 100 is the most"),
    )
    for changes, said in cases:
        given = {"prompts": "a cat", "training": "none" if "checkpoints" in changes else "my_lora", **changes}
        with pytest.raises(part("backend.musubi_backend.errors").UserError, match=said):
            compared(part, host, **given)
    assert not any("generate" in path.name for path in (home / "jobs").iterdir()) and not (run_folder / "comparisons").exists()
