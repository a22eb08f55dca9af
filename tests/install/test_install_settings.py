"""Settings that only install.py can write: allowed folders, the second engine, the home folder."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from installer.console import Console, InstallError
from installer.settings import Settings


def _settings(home: Path) -> Settings:
    return Settings(home / "config.json", Console(home))


def _home_folder(repository: Path) -> Any:
    spec = importlib.util.spec_from_file_location("home_rule", repository / "nodes" / "jobs" / "home.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.home_folder


def test_home_follows_from_where_the_pack_lies(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home_folder = _home_folder(repository)
    monkeypatch.delenv("MUSUBITUNER_HOME", raising=False)
    assert home_folder(tmp_path / "custom_nodes" / "pack") == tmp_path / "user" / "__musubituner"
    assert home_folder(tmp_path / "src" / "pack") == tmp_path / "src" / "pack" / ".musubituner"
    monkeypatch.setenv("MUSUBITUNER_HOME", str(tmp_path / "elsewhere"))
    assert home_folder(tmp_path / "custom_nodes" / "pack") == tmp_path / "elsewhere"


def test_allowed_roots_are_real_folders_each_once_the_widest_wins(tmp_path: Path) -> None:
    (tmp_path / "clips" / "inner").mkdir(parents=True)
    settings = _settings(tmp_path)
    settings.allow_root(str(tmp_path / "clips" / "inner"))
    settings.allow_root(str(tmp_path / "clips"))
    settings.allow_root(str(tmp_path / "clips" / "inner"))
    assert settings.allowed_roots == [tmp_path / "clips"]


@pytest.mark.parametrize("root", ["/", "~", "no-such-folder", "~nobody-of-this-name/clips", "loop"])
def test_roots_that_would_open_everything_or_nothing_are_rejected(tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InstallError, match="--allow-root"):
        _settings(tmp_path).allow_root(root)


def test_a_home_of_a_user_that_is_not_there_is_taken_as_it_is_written(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell does."""
    monkeypatch.setenv("MUSUBITUNER_HOME", "~nobody-of-this-name/home")
    monkeypatch.chdir(tmp_path)
    assert _home_folder(repository)(tmp_path) == tmp_path / "~nobody-of-this-name" / "home"


def test_a_link_is_allowed_as_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    settings = _settings(tmp_path)
    settings.allow_root(str(tmp_path / "link"))
    assert settings.allowed_roots == [tmp_path / "real"]


def test_damaged_settings_are_kept_aside_and_begun_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"allowed_roots": ["/data"')
    settings = _settings(tmp_path)
    settings.save()
    assert (tmp_path / "config.json.damaged").read_text() == '{"allowed_roots": ["/data"'
    assert json.loads((tmp_path / "config.json").read_text())["engine"] == "builtin"
    assert "damaged" in capsys.readouterr().out


def _checkout(folder: Path) -> Path:
    (folder / "src" / "musubi_tuner").mkdir(parents=True)
    (folder / "wan_train_network.py").write_text("")
    (folder / "pyproject.toml").write_text('[project]\nname = "musubi-tuner"\nversion = "0.3.4"\n')
    return folder


def test_a_checkout_with_a_python_that_has_torch_becomes_the_second_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("accelerate")
    checkout = _checkout(tmp_path / "musubi")
    settings = _settings(tmp_path)
    with pytest.raises(InstallError, match="no musubi-tuner checkout is registered"):
        settings.use_engine("musubi-tuner")
    settings.register_musubi_tuner(str(checkout), sys.executable)
    settings.use_engine("musubi-tuner")
    settings.save()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["musubi_tuner"] == {"path": str(checkout), "python": sys.executable}
    assert written["engine"] == "musubi-tuner"
    assert "0.3.4" in capsys.readouterr().out


def test_what_is_no_checkout_or_cannot_run_it_is_rejected(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    with pytest.raises(InstallError, match="no checkout of musubi-tuner"):
        settings.register_musubi_tuner(str(tmp_path), None)
    checkout = _checkout(tmp_path / "musubi")
    with pytest.raises(InstallError, match="--musubi-python"):
        settings.register_musubi_tuner(str(checkout), None)
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    with pytest.raises(InstallError, match="cannot import torch"):
        settings.register_musubi_tuner(str(checkout), str(bare / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")))
    assert settings.musubi_tuner is None


def test_the_command_line_says_what_does_not_go_together(repository: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(repository / "install.py"), "--home", str(tmp_path / "home"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")

    assert "goes with --musubi-tuner" in run("--musubi-python", sys.executable).stdout
    assert "not allowed with" in run("--cpu", "--cuda").stderr
    allowed = run("--allow-root", str(tmp_path))
    assert (allowed.returncode, f"Allowed: {tmp_path}" in allowed.stdout) == (0, True)
    assert not (tmp_path / "home" / "venv").exists()


def test_a_linked_pack_has_the_home_of_the_comfyui_it_is_linked_into(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home_folder = _home_folder(repository)
    monkeypatch.delenv("MUSUBITUNER_HOME", raising=False)
    (tmp_path / "checkouts" / "pack").mkdir(parents=True)
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    link = tmp_path / "ComfyUI" / "custom_nodes" / "pack"
    link.symlink_to(tmp_path / "checkouts" / "pack", target_is_directory=True)
    home = tmp_path / "ComfyUI" / "user" / "__musubituner"
    assert home_folder(link) == home
    monkeypatch.chdir(link)  # `cd custom_nodes/pack; python install.py`: only the shell knows of the link
    monkeypatch.setenv("PWD", str(link))
    assert home_folder(tmp_path / "checkouts" / "pack") == home
    monkeypatch.setenv("PWD", str(tmp_path))  # left over from another program
    assert home_folder(tmp_path / "checkouts" / "pack") == tmp_path / "checkouts" / "pack" / ".musubituner"


def test_the_pack_is_found_where_comfyui_names_it(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSUBITUNER_HOME", raising=False)
    (tmp_path / "custom_nodes").mkdir()
    link = tmp_path / "custom_nodes" / "linked"
    link.symlink_to(repository, target_is_directory=True)
    code = (
        "import importlib, importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('p', {str(link / '__init__.py')!r}, submodule_search_locations=[{str(link)!r}])\n"
        "sys.modules['p'] = importlib.util.module_from_spec(spec); spec.loader.exec_module(sys.modules['p'])\n"
        "print(importlib.import_module('p.nodes.jobs.config').default_home())\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout.strip()
    assert said == str(tmp_path / "user" / "__musubituner")


def test_what_cannot_be_read_is_one_sentence_that_names_it(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    command = [sys.executable, str(repository / "install.py"), "--home", str(tmp_path), "--allow-root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"\nERROR: {tmp_path / 'config.json'}: ")


def test_what_the_page_changed_while_this_program_ran_stays(repository: Path, tmp_path: Path, part: Any) -> None:
    """An installation takes minutes; its settings were read at its start."""
    config, home = part("nodes.jobs.config"), tmp_path / "home"
    for name in ("kept", "taken out", "of the page", "of the installer"):
        (tmp_path / name).mkdir()
    config.allow_folders(home, [str(tmp_path / "kept"), str(tmp_path / "taken out")])
    settings = _settings(home)
    config.allow_folders(home, [str(tmp_path / "kept"), str(tmp_path / "of the page")])
    config.set_queue(home, {"restarts": 3})
    settings.allow_root(str(tmp_path / "of the installer"))
    settings.use_cpu_threads("5")
    settings.save()
    now = config.load(home)
    assert [root.name for root in now.allowed_roots] == ["kept", "of the page", "of the installer"]
    assert (now.queue["restarts"], now.cpu_threads) == (3, 5)
