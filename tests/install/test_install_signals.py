"""Whatever the installer starts can be interrupted, even where a shell in the background started the installer with SIGINT ignored."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

_CODE = """
import contextlib, io, subprocess, sys
sys.path.insert(0, ".")
import install
with contextlib.redirect_stdout(io.StringIO()):
    install.main(["--doctor"])
child = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout.strip())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_what_the_installer_starts_can_be_interrupted(small_pack: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        cwd=small_pack.root,
        env=small_pack.environment(),
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.stdout.splitlines()[-1] == "False"
