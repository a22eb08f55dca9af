"""Which CUDA build of PyTorch a machine gets: by what the driver runs and what the GPU has kernels in."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import pytest

from installer import machine, torch_build
from installer.console import InstallError
from installer.machine import Gpu
from installer.torch_build import Torch, choose, fits, has_kernels

pytestmark = pytest.mark.skipif(
    sys.platform == "darwin" or platform.machine().lower() not in {"x86_64", "amd64"}, reason="the builds of other machines differ"
)


def gpu(name: str, driver: str, capability: tuple[int, int] | None) -> Gpu:
    return Gpu(name, 12.0, driver, capability)


def test_the_table_is_that_of_the_pinned_release(repository: Path) -> None:
    """PyTorch's RELEASE.md for 2.13: no 12.8 any more; Maxwell to Volta in 12.6 alone, Blackwell in 13 alone."""
    table = json.loads((repository / "installer" / "torch_builds.json").read_text(encoding="utf-8"))
    pinned = torch_build.pinned_version(repository / "backend" / "constraints.txt")
    assert pinned.rpartition(".")[0] == table["torch"], "a new release: take its table from the source that the file names"
    assert {build["name"]: build["architectures"] for build in table["builds"]} == {
        "cu130": {"x86_64": ["7.5", "8.0", "8.6", "9.0", "10.0", "12.0"], "aarch64": ["8.0", "9.0", "10.0", "11.0", "12.0"]},
        "cu126": {"x86_64": ["5.0", "6.0", "7.0", "7.5", "8.0", "8.6", "9.0"], "aarch64": ["8.0", "9.0"]},
    }


@pytest.mark.parametrize(
    ("name", "driver", "capability", "build"),
    [
        ("GeForce GTX 980", "580.95.05", (5, 2), "cu126"),
        ("GeForce GTX 1080 Ti", "580.95.05", (6, 1), "cu126"),
        ("Tesla V100", "580.95.05", (7, 0), "cu126"),
        ("Tesla V100", "535.54.03", (7, 0), "cu126"),
        ("GeForce RTX 2080", "580.0", (7, 5), "cu130"),
        ("GeForce RTX 2080", "579.99", (7, 5), "cu126"),
        ("GeForce RTX 3060", "535.54.03", (8, 6), "cu126"),
        ("GeForce RTX 3060", "590.10", (8, 6), "cu130"),
        ("GeForce RTX 4090", "570.1", (8, 9), "cu126"),
        ("GeForce RTX 4090", "590.10", (8, 9), "cu130"),
        ("H100", "550.54", (9, 0), "cu126"),
        ("GeForce RTX 5090", "580.65", (12, 0), "cu130"),
        ("B300", "590.1", (10, 3), "cu130"),
        ("old driver that does not tell", "535.54.03", None, "cu126"),
        ("driver without a number", "N/A", (8, 6), "cu130"),
    ],
)
def test_a_gpu_gets_the_build_that_its_driver_runs_and_that_has_its_kernels(
    name: str, driver: str, capability: tuple[int, int] | None, build: str
) -> None:
    choice = choose("auto", [gpu(name, driver, capability)])
    assert (choice.kind, choice.build, choice.advice) == ("cuda", build, None)


@pytest.mark.parametrize(
    ("driver", "capability", "build", "needed"),
    [
        ("570.124", (12, 0), "cu130", "580"),
        ("550.54", (10, 0), "cu130", "580"),
        ("470.82", (8, 6), "cu126", "52"),
        ("470.82", (6, 1), "cu126", "52"),
    ],
)
def test_where_the_driver_is_too_old_for_every_build_with_kernels_the_user_is_reported_which_to_get(
    driver: str, capability: tuple[int, int], build: str, needed: str
) -> None:
    choice = choose("auto", [gpu("some GPU", driver, capability)])
    assert choice.build == build
    assert choice.advice and f"driver {needed}" in choice.advice and driver in choice.advice


def test_a_gpu_older_than_every_build_computes_on_the_cpu_and_cuda_is_rejected() -> None:
    kepler = gpu("GeForce GT 710", "470.82", (3, 5))
    choice = choose("auto", [kepler])
    assert (choice.kind, choice.build) == ("cpu", "cpu") and choice.advice and "no build of PyTorch" in choice.advice
    with pytest.raises(InstallError, match=r"GT 710 \(compute capability 3.5\).*--cpu"):
        choose("cuda", [kepler])


def test_several_gpus_get_the_build_that_most_can_use_and_the_others_are_named() -> None:
    old, new = gpu("GTX 1080", "580.1", (6, 1)), gpu("RTX 3090", "580.1", (8, 6))
    assert choose("auto", [old, new]).build == "cu126", "it has kernels for both"
    blackwell = gpu("RTX 5090", "580.1", (12, 0))
    choice = choose("auto", [old, blackwell, new])
    assert choice.build in {"cu126", "cu130"} and choice.advice
    waiting = choose("auto", [gpu("RTX 3090", "570.1", (8, 6)), gpu("RTX 5090", "570.1", (12, 0))])
    assert waiting.build == "cu126", "one computes now"
    assert waiting.advice and "RTX 5090" in waiting.advice and "580" in waiting.advice


def test_kernels_run_on_later_gpus_of_the_same_generation_only() -> None:
    assert has_kernels([(8, 6)], (8, 9)) and has_kernels([(6, 0)], (6, 1)) and has_kernels([(12, 0)], (12, 1))
    assert not has_kernels([(8, 6)], (8, 0)) and not has_kernels([(7, 5)], (7, 0)) and not has_kernels([(9, 0)], (10, 0))


def test_without_a_gpu_the_switch_and_what_is_there_decide() -> None:
    assert choose("auto", []).build == "cpu" and choose("cpu", [gpu("RTX 4090", "590.1", (8, 9))]).build == "cpu"
    assert choose("cuda", []).kind == "cuda"
    absent = choose("auto", [], installed="cuda")
    assert absent.kind == "cuda" and fits(absent, Torch("2.13.0+cu130", "13.0", False, ()), "2.13.0"), "the driver does not answer today"


def test_what_torch_says_it_is_decides_whether_it_fits() -> None:
    """A package without a local version may be either: on PyPI it is CUDA for Linux and CPU for Windows."""
    auto = choose("auto", [gpu("RTX 4090", "590.1", (8, 9))])
    assert fits(auto, Torch("2.13.0", "13.0", True, ()), "2.13.0")
    assert not fits(auto, Torch("2.13.0", None, False, ()), "2.13.0")
    assert not fits(auto, Torch("2.13.0+cu126", "12.6", True, ()), "2.13.0"), "the driver was updated"
    assert not fits(choose("cpu", []), Torch("2.13.0", "13.0", False, ()), "2.13.0")
    assert not fits(choose("cpu", []), Torch("2.12.0+cpu", None, False, ()), "2.13.0")
    assert not fits(choose("cpu", []), None, "2.13.0")


def _nvidia_smi(folder: Path, answers: dict[str, str]) -> None:
    """A program that answers the queries it knows, and ends with an error for others, as old ones do."""
    path = folder / "nvidia-smi"
    lines = "".join(f'if "--query-gpu={query}" in sys.argv: print({answer!r}); sys.exit(0)\n' for query, answer in answers.items())
    path.write_text(f"#!{sys.executable}\nimport sys\n{lines}print('Field is not a valid field to query.'); sys.exit(2)\n")
    path.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="a script as a program")
@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (
            {"name,memory.total,driver_version,compute_cap": "RTX 5090, 32607, 575.57.08, 12.0\nTesla V100, 16160, 575.57.08, 7.0"},
            [("RTX 5090", (12, 0)), ("Tesla V100", (7, 0))],
        ),
        ({"name,memory.total,driver_version": "GeForce GTX 1080, 8119, 450.80.02"}, [("GeForce GTX 1080", None)]),
        ({"name,memory.total,driver_version,compute_cap": "NVIDIA GB10, [N/A], 580.95.05, 12.1"}, [("NVIDIA GB10", (12, 1))]),
        ({"name,memory.total,driver_version,compute_cap": "No devices were found"}, []),
        ({}, []),
    ],
)
def test_what_nvidia_smi_says(
    answers: dict[str, str], found: list[tuple[str, tuple[int, int] | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _nvidia_smi(tmp_path, answers)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert [(gpu.name, gpu.capability) for gpu in machine.nvidia_gpus()] == found
