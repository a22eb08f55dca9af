"""The simulated GPU, in a process of its own: `gpu("training", "wan", …)` calls that function of `simulated_cases` there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import simulated_driver

WORKER = Path(__file__).with_name("simulated_worker.py")


@pytest.fixture(scope="session")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    missing = simulated_driver.lacking()
    if missing:
        pytest.skip(missing)
    log = tmp_path_factory.mktemp("simulated_gpu") / "log.txt"
    with (
        log.open("wb") as said,
        subprocess.Popen(
            [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8"
        ) as worker,
    ):
        assert worker.stdin is not None and worker.stdout is not None

        def call(name: str, *given: object) -> Any:
            print(json.dumps([name, *given]), file=worker.stdin, flush=True)
            line = worker.stdout.readline()
            assert line, f"the process with the simulated GPU ended:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}"
            answer = json.loads(line)
            if "error" in answer:
                pytest.fail(f"{answer['error']}\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}", pytrace=False)
            return answer["is"]

        yield call
        worker.stdin.close()
