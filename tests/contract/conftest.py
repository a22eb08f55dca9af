"""Where the table is run, and the trainings and generations it is made of.

On a CPU, as in CI:  `python -m pytest tests/contract`
On a GPU:            `python -m pytest -c tests/contract/gpu.ini tests/contract --device cuda --full`

The second needs torch, numpy, transformers and pytest only (triton for compiled rows). Training and generating run there whole: their
caches and conditions are made from tensors, so neither diffusers nor av is asked for. Caching skips without those two packages, two
processes without accelerate, fp8 text encoders without their tokenizers' package; attention packages that are not installed skip.
On no GPU:          `python -m pytest -n 0 tests/contract --device simulated --full`

The third runs it on a GPU that is not there (`tests/cuda_simulated`): devices, dtypes, shapes and the order of copies are checked. The
values are made up, so of the promises only names, shapes and dtypes are.
`--full` is the whole product of families, rows, precisions and lives; without it every row and every family appears.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DEVICES = ("cpu", "cuda", "simulated")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=DEVICES, default="cpu", help="where tests/contract computes")
    with contextlib.suppress(ValueError):  # where tests/conftest.py is read, it has it
        parser.addoption("--full", action="store_true", help="the whole product of tests/contract")


def pytest_configure(config: pytest.Config) -> None:
    """Before anything asks CUDA: trainers take the GPU that they see."""
    if config.getoption("--device", "cpu") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if config.getoption("--device", "cpu") == "simulated":
        sys.path.insert(0, str(Path(__file__).parents[1] / "cuda_simulated"))
        import simulated_driver

        missing = simulated_driver.lacking()
        if missing:
            raise pytest.UsageError(f"--device simulated: {missing}")
        simulated_driver.load()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # products with the same bits each time


def is_full(config: pytest.Config) -> bool:
    return bool(config.getoption("--full", False))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device under test, with kernels that give the same bits each time."""
    import torch

    name: str = request.config.getoption("--device", "cpu")
    if name == "simulated":
        import contract_bench
        from simulated_gpu import simulated_gpu

        with simulated_gpu() as gpu:
            contract_bench.made_up = True
            yield "cuda"
            assert not gpu.order.races, "\n".join(gpu.order.races)
        return
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("--device cuda: PyTorch finds no GPU")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(name == "cuda", warn_only=True)
    yield name
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def bench(device: str, tmp_path_factory: pytest.TempPathFactory) -> object:
    from contract_bench import Bench

    return Bench(tmp_path_factory.mktemp("contract"), device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The cells of the table, for tests that ask for `training_cell` or `generating_cell`."""
    from contract_table import generating_cells, training_cells

    for name, cells in (("training_cell", training_cells), ("generating_cell", generating_cells)):
        if name in metafunc.fixturenames:
            marked = [
                pytest.param(cell, id=str(cell), marks=[pytest.mark.slow] if cell.setting.slow else [])
                for cell in cells(is_full(metafunc.config))
            ]
            metafunc.parametrize(name, marked)
