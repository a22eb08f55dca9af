"""install.py run as a program: from nothing to an environment that works, again, after a kill, and after damage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def _imports(pack: Any) -> str:
    code = "import musubi_backend, torch, tqdm; print(musubi_backend.__file__)"
    return subprocess.run([str(pack.python), "-I", "-c", code], capture_output=True, text=True, check=True, encoding="utf-8").stdout.strip()


def _steps(pack: Any) -> dict[str, str]:
    steps: dict[str, str] = json.loads((pack.home / "install.json").read_text())["steps"]
    return steps


def test_the_environment_lies_in_comfyuis_user_folder_and_uses_the_code_in_place(installed_pack: Any) -> None:
    assert Path(_imports(installed_pack)) == installed_pack.root / "backend" / "musubi_backend" / "__init__.py"
    config = json.loads((installed_pack.home / "config.json").read_text(encoding="utf-8"))
    assert config["interpreter"] == str(installed_pack.python) and config["engine"] == "builtin"
    assert not (installed_pack.root / "venv").exists()


def test_a_second_run_from_another_folder_starts_no_package_manager(installed_pack: Any, tmp_path: Path) -> None:
    log = installed_pack.home / "install.log"
    before = log.read_text(encoding="utf-8")
    done = installed_pack.install(folder=tmp_path)
    assert (done.returncode, "installed already" in done.stdout) == (0, True), done.stdout + done.stderr
    after = log.read_text(encoding="utf-8").removeprefix(before)
    assert not [line for line in after.splitlines() if "  > " in line], "programs that were run"


def test_a_second_run_does_not_write_settings_anew(installed_pack: Any) -> None:
    config = installed_pack.home / "config.json"
    before = config.stat().st_mtime_ns
    installed_pack.install()
    assert config.stat().st_mtime_ns == before


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process group")
def test_an_installation_killed_at_every_step_goes_on_where_it_was(small_pack: Any, request: pytest.FixtureRequest) -> None:
    """Without --full at the one step after which there is something to keep and something to do again."""
    for moment in ("Making an environment", "PyTorch", "Installing the backend") if request.config.getoption("--full") else ("PyTorch",):
        process = subprocess.Popen(
            small_pack.command(), env=small_pack.environment(), stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
        )
        assert process.stdout is not None
        assert any(moment in line for line in process.stdout), moment
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    again = small_pack.install()
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Making an environment" not in again.stdout, "that step was done"
    assert set(_steps(small_pack)) == {"environment", "torch", "backend"}
    assert _imports(small_pack)


def test_a_package_killed_while_unpacking_is_installed_again(breakable_pack: Any) -> None:
    torch = next((breakable_pack.home / "venv").rglob("torch/__init__.py"))
    torch.unlink()
    state = breakable_pack.home / "install.json"
    data = json.loads(state.read_text())
    del data["steps"]["torch"]
    state.write_text(json.dumps({**data, "running": "torch"}))
    again = breakable_pack.install()
    assert "torch is not as it was installed" in again.stdout, again.stdout + again.stderr
    assert _imports(breakable_pack)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("python gone", marks=pytest.mark.full(reason="makes everything anew, as the first installation does")),
        "torch gone",
        "state damaged",
    ],
)
def test_a_damaged_installation_is_repaired(breakable_pack: Any, damage: str) -> None:
    if damage == "python gone":
        breakable_pack.python.unlink()
    elif damage == "torch gone":
        for folder in (breakable_pack.home / "venv").rglob("torch*"):
            if folder.is_dir():
                shutil.rmtree(folder)
    else:
        (breakable_pack.home / "install.json").write_text('{"steps": ')
    again = breakable_pack.install()
    assert again.returncode == 0, again.stdout + again.stderr
    assert _imports(breakable_pack)


def test_new_requirements_touch_only_the_backend_step(breakable_pack: Any) -> None:
    before = _steps(breakable_pack)
    constraints = breakable_pack.root / "backend" / "constraints.txt"
    constraints.write_text(constraints.read_text() + "# a new release\n")
    done = breakable_pack.install()
    after = _steps(breakable_pack)
    assert {name for name in after if after[name] != before[name]} == {"backend"}
    assert "large download" not in done.stdout


def test_a_missing_package_is_named_with_the_log_and_the_next_run_goes_on(small_pack: Any) -> None:
    wheel = next(small_pack.wheels.glob("tqdm*"))
    hidden = wheel.rename(wheel.with_suffix(".hidden"))
    failed = small_pack.install()
    assert failed.returncode == 1
    assert "tqdm" in failed.stdout and str(small_pack.home / "install.log") in failed.stdout
    assert "Traceback" not in failed.stdout + failed.stderr
    hidden.rename(wheel)
    again = small_pack.install()
    assert again.returncode == 0 and "large download" not in again.stdout


def test_an_extra_is_installed_when_it_is_first_needed_and_then_remembered(breakable_pack: Any) -> None:
    first = breakable_pack.install("--quickstart")
    assert "packages for the demo data" in first.stdout
    assert "extra demo" in _steps(breakable_pack)


def test_the_doctor_says_what_is_wrong_and_how_to_mend_it(small_pack: Any, breakable_pack: Any) -> None:
    before = small_pack.install("--doctor")
    assert before.returncode == 1 and "not installed. Run: python install.py" in before.stdout
    healthy = breakable_pack.install("--doctor")
    assert healthy.returncode == 0, healthy.stdout
    assert "torch 1.0+cpu" in healthy.stdout and "Nothing is wrong" in healthy.stdout
    with (breakable_pack.root / "backend" / "constraints.txt").open("a") as file:
        file.write("# a new release\n")
    updated = breakable_pack.install("--doctor")
    assert updated.returncode == 1 and "The pack was updated" in updated.stdout


def test_two_installations_at_once_do_not_mix(installed_pack: Any) -> None:
    from installer.files import only_one

    with only_one(installed_pack.home):
        refused = installed_pack.install()
    assert refused.returncode == 1 and "another installation" in refused.stdout
    assert installed_pack.install().returncode == 0
