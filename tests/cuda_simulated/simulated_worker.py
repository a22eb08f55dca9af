"""The process with the simulated GPU: a line of JSON names a function of `simulated_cases` and its arguments, a line comes back."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

if __name__ == "__main__":
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests.parent), str(tests.parent / "backend"), str(tests), str(tests / "contract"), str(tests / "training")]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what tools print is no answer
    import simulated_driver

    simulated_driver.load()
    import simulated_cases
    import simulated_faults
    import simulated_templates
    import simulated_tools

    known = {**vars(simulated_cases), **vars(simulated_faults), "template": simulated_templates.template, "tools": simulated_tools.tools}

    for line in sys.stdin:
        name, *given = json.loads(line)
        try:
            answer = {"is": known[name](*given)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)
