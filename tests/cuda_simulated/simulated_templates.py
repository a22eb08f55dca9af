"""A shipped template with its own widget values, small files and clips: what its nodes start runs here, on the simulated GPU."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

from musubi_backend.__main__ import main
from musubi_backend.job import JOB_DIR_VARIABLE
from simulated_gpu import simulated_gpu

ROOT = Path(__file__).resolve().parents[2]
_MADE_ON_THE_CPU = ("demo_models", "demo_dataset")
_PACK = "simulated_pack"


def template(name: str, home: str) -> dict[str, Any]:
    """Of each tool that the workflow started, in order: its name, exit code and races. wrong: what `headless` returned."""
    run, runner = _part("headless.run"), _part("nodes.jobs.runner")
    tools: list[dict[str, Any]] = []

    async def start(folder: Any, command: Any) -> Any:
        words = command.argv[command.argv.index("musubi_backend") + 1 :]
        with patch.dict(os.environ, {JOB_DIR_VARIABLE: command.env[JOB_DIR_VARIABLE]}), patch.object(sys, "stdin", _nobody_asks()):
            if words[0] in _MADE_ON_THE_CPU:
                code = main(words)
            else:
                with simulated_gpu() as gpu:
                    code = main(words)
                    tools.append({"tool": words[0], "code": code, "races": gpu.order.races})
        folder.log.touch()
        return runner.Job(folder, command, returncode=code, ended=True)

    with patch.object(runner, "start", start):
        wrong = run.run_file(ROOT / "workflows" / f"{name}.json", [], [], Path(home), fresh=True, demo=True)
    return {"wrong": wrong, "tools": tools}


def _nobody_asks() -> IO[str]:
    """What a job listens to, and its end never comes."""
    reading, writing = os.pipe()
    _open.append(writing)
    return os.fdopen(reading)


_open: list[int] = []


def _part(module: str) -> Any:
    if _PACK not in sys.modules:
        spec = importlib.util.spec_from_file_location(_PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        assert spec is not None and spec.loader is not None
        sys.modules[_PACK] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_PACK])
    return importlib.import_module(f"{_PACK}.{module}")
