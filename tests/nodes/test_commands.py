"""The command line and environment of a job, for each engine: who runs what, with how many processes and threads, on which GPU."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

TRAINER = "wan_train_network"


@pytest.fixture
def command(part: Any, tmp_path: Path) -> Any:
    """A function: the command of a tool with these settings of `config.json`."""
    ours, theirs, checkout = tmp_path / "our python", tmp_path / "their python", tmp_path / "musubi"
    checkout.mkdir()
    for file in (ours, theirs, checkout / f"{TRAINER}.py"):
        file.write_text("", encoding="utf-8")

    def made(
        engine: str = "builtin",
        tool: str = TRAINER,
        threads: int | None = None,
        more: tuple[str, ...] = (),
        gpu: str | None = None,
        **options: Any,
    ) -> Any:
        settings = part("nodes.jobs.config").Config(tmp_path, ours, engine, checkout, theirs, (), threads)
        folder = part("nodes.jobs.folder").JobFolder(tmp_path)
        task = part("nodes.jobs.task").Task(tool, ("--sdpa", *more), **options)
        return part("nodes.jobs.engine").command(settings, folder, task, gpu=gpu)

    return made


def reported(words: list[str]) -> list[str]:
    """Files by their names."""
    return [Path(word).name if Path(word).is_absolute() else word for word in words]


OURS, GUARDED = ["-m", "musubi_backend", TRAINER, "--sdpa"], ["guarded.py", f"{TRAINER}.py", "--sdpa"]


@pytest.mark.parametrize(
    ("engine", "options", "words", "launched"),
    [
        ("builtin", {}, ["our python", *OURS], False),
        ("builtin", {"launch": True}, ["our python", *OURS], False),
        ("builtin", {"launch": True, "processes": 2}, ["our python", *OURS], True),
        ("builtin", {"processes": 2}, ["our python", *OURS], False),
        ("musubi-tuner", {}, ["their python", *GUARDED], False),
        ("musubi-tuner", {"launch": True}, ["their python", *GUARDED], True),
        ("musubi-tuner", {"foreign": False}, ["our python", *OURS], False),
    ],
)
def test_each_engine_runs_its_own_tools(command: Any, engine: str, options: dict[str, Any], words: list[str], launched: bool) -> None:
    made = command(engine, **options)
    own = reported(made.argv)
    assert [own[0], *own[-len(words) + 1 :]] == words
    assert ("accelerate.commands.launch" in own) is launched
    assert launched or len(own) == len(words)
    assert made.listens is (words[0] == "our python") and made.engine == ("builtin" if words[0] == "our python" else "musubi-tuner")


@pytest.mark.parametrize(("processes", "kind"), [(1, "NO"), (3, "MULTI_GPU")])
def test_the_launcher_is_given_all_that_it_would_ask(command: Any, tmp_path: Path, processes: int, kind: str) -> None:
    words = command("musubi-tuner", launch=True, processes=processes, mixed_precision="bf16", threads=5).argv
    said = dict(pairwise(words))
    assert (said["--num_processes"], said["--mixed_precision"], said["--num_cpu_threads_per_process"]) == (str(processes), "bf16", "5")
    values = json.loads((tmp_path / "accelerate.json").read_text(encoding="utf-8"))
    assert said["--config_file"] == str(tmp_path / "accelerate.json")
    assert (values["distributed_type"], values["num_processes"], values["mixed_precision"]) == (kind, processes, "bf16")
    assert not values["use_cpu"] and values["num_machines"] == 1 and said["--num_machines"] == "1"


def test_each_of_several_machines_is_told_which_one_it_is(command: Any, part: Any, tmp_path: Path) -> None:
    """Also with one process each, which a single machine would start without a launcher."""
    machines = part("nodes.jobs.task").Machines(2, 1, "trainer-1.local", 29511)
    words = command(launch=True, processes=3, mixed_precision="bf16", machines=machines).argv
    said = dict(pairwise(words))
    told = [said[f"--{name}"] for name in ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")]
    assert told == ["6", "2", "1", "trainer-1.local", "29511"]
    values = json.loads((tmp_path / "accelerate.json").read_text(encoding="utf-8"))
    assert [values[name] for name in ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")] == [
        6, 2, 1, "trainer-1.local", 29511,
    ]  # fmt: skip
    assert values["distributed_type"] == "MULTI_GPU" and values["same_network"]
    assert "accelerate.commands.launch" in command(launch=True, machines=machines).argv


@pytest.mark.parametrize(
    ("given", "where", "said"),
    [
        ({"machines": 2, "machine_rank": 1, "main_process_ip": "192.168.1.20"}, "", ""),
        ({"machines": 2, "main_process_ip": "trainer.local"}, "", ""),
        ({"machines": 2, "main_process_ip": "fe80::1"}, "", ""),
        ({"machines": 2, "machine_rank": 2, "main_process_ip": "a"}, "machine_rank", "2 is none of 2 machines, which count from 0 to 1"),
        ({"machines": 2}, "main_process_ip", "is empty: several machines need the address of the main one"),
        ({"machines": 2, "main_process_ip": "192.168.1.300"}, "main_process_ip", "is no address"),
        ({"machines": 2, "main_process_ip": "0:0:0:0:0:0:0:0"}, "main_process_ip", "is no address"),
        ({"machines": 2, "main_process_ip": "http://host"}, "main_process_ip", "is no address"),
        ({"machine_rank": 1}, "machine_rank", "and machines is 1: set how many"),
        ({"machines": 2, "main_process_ip": "--help"}, "main_process_ip", "is no address"),
        ({"machines": 2, "main_process_ip": "a b"}, "main_process_ip", "is no address"),
        ({"machines": 2, "main_process_ip": "host:29500"}, "main_process_ip", "is no address"),
        ({"machines": 2, "main_process_ip": "host", "run": "in the background"}, "run", "runs here, not in the background"),
        ({"fsdp": True}, "fsdp", "there is one: raise processes"),
        ({"fsdp": True, "processes": 2}, "", ""),
        ({"fsdp": True, "machines": 2, "main_process_ip": "host"}, "", ""),
    ],
)
def test_machines_that_cannot_be_are_refused_where_they_are_entered(part: Any, given: dict[str, Any], where: str, said: str) -> None:
    usual = {"processes": 1, "machines": 1, "machine_rank": 0, "main_process_ip": "", "run": "here", "fsdp": False}
    found = list(part("nodes.several_machines").problems({**usual, **given}, "in the background"))
    assert [problem.input for problem in found] == ([where] if where else [])
    assert all(said in problem.text for problem in found)


def test_a_job_remembers_its_machines(part: Any) -> None:
    task = part("nodes.jobs.task")
    made = task.Task("a tool", machines=task.Machines(2, 1, "host", 29511))
    assert task.read(json.loads(json.dumps(made.noted()))) == made
    assert task.read({name: value for name, value in made.noted().items() if name != "machines"}).machines.count == 1, "a job of before"


def test_threads_are_passed_where_they_are_known(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert command(threads=3).argv[-2:] == ["--cpu_threads", "3"]
    assert "--cpu_threads" not in command().argv
    assert command(threads=3).env["OMP_NUM_THREADS"] == command("musubi-tuner").env["OMP_NUM_THREADS"] == "7"
    foreign = command("musubi-tuner", threads=3)
    assert foreign.env["OMP_NUM_THREADS"] == "3" and "--cpu_threads" not in foreign.argv


@pytest.mark.parametrize(("engine", "library"), [("builtin", "backend"), ("musubi-tuner", "src")])
def test_a_job_sees_its_own_library_and_the_gpu_it_is_given(
    command: Any, engine: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setenv("PYTHONPATH", "poison")
    alone = command(engine, gpu="GPU-2").env
    assert alone["CUDA_VISIBLE_DEVICES"] == "GPU-2" and Path(alone["PYTHONPATH"]).name == library
    assert command(engine).env["CUDA_VISIBLE_DEVICES"] == "0,1,2"


def test_what_is_missing_is_named_with_what_to_run(part: Any, command: Any, tmp_path: Path) -> None:
    error = part("backend.musubi_backend.errors").UserError
    with pytest.raises(error, match=r"musubi has no wan_generate_video\.py.*--musubi-tuner PATH"):
        command("musubi-tuner", "wan_generate_video")
    for engine, file, said in (("builtin", "our python", "is not installed yet"), ("musubi-tuner", "their python", "is missing")):
        (tmp_path / file).unlink()
        with pytest.raises(error, match=rf"{said} .*{file}.*python install\.py"):
            command(engine)


def test_the_users_choice_of_waiting_wins_and_leftovers_of_other_environments_go(part: Any) -> None:
    child = part("nodes.jobs.environment").child_environment
    base = {"OMP_WAIT_POLICY": "ACTIVE", "PythonPath": "poison", "VIRTUAL_ENV": "poison", "pytorch_cuda_alloc_conf": "poison", "HOME": "/h"}
    made = child("/job", {"EXTRA": "1"}, base)
    assert made["OMP_WAIT_POLICY"] == "ACTIVE" and made["KMP_BLOCKTIME"] == "0"
    assert "poison" not in made.values() and (made["HOME"], made["EXTRA"], made["MUSUBITUNER_JOB_DIR"]) == ("/h", "1", "/job")
    assert child("/job", {"PYTHONUTF8": "0"}, {"PYTHONUTF8": "2"})["PYTHONUTF8"] == "0", "what we set for one job counts most"
    assert child("/job", None, {"PYTHONUTF8": "2"})["PYTHONUTF8"] == "1"


@pytest.mark.parametrize(
    ("given", "count", "names"),
    [("", 2, ["0", "1"]), ("3, 5", 2, ["3", "5"]), ("3,5", 1, ["3"]), ("GPU-a,", 1, ["GPU-a"]), ("", 0, [])],
)
def test_gpus_keep_the_names_they_were_given(part: Any, monkeypatch: pytest.MonkeyPatch, given: str, count: int, names: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert part("nodes.jobs.environment").visible_gpus(count) == names


@pytest.mark.parametrize(("engine", "stamp"), [("builtin", "builtin"), ("musubi-tuner", "musubi-tuner /one")])
def test_another_checkout_is_another_engine(part: Any, tmp_path: Path, engine: str, stamp: str) -> None:
    checkout = {"path": "/one", "python": "/p"}
    (tmp_path / "config.json").write_text(json.dumps({"engine": engine, "musubi_tuner": checkout}), encoding="utf-8")
    assert part("nodes.jobs.config").engine_stamp(tmp_path) == stamp


@pytest.mark.parametrize("text", ['{"engine": "other"}', '{"musubi_tuner": 3}', "[1]", "{", '{"cpu_threads": "many"}'])
def test_damaged_settings_say_what_writes_them_anew(part: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match=r"config\.json is damaged .*python install\.py"):
        part("nodes.jobs.config").load(tmp_path)


@pytest.mark.parametrize("flag", ["--lora_per_expert", "--skip_mismatched"])
def test_musubi_tuner_is_not_given_what_only_our_backend_has(command: Any, part: Any, flag: str) -> None:
    assert flag in command("builtin", more=(flag,)).argv
    said = f"{flag[2:]}: musubi-tuner's {TRAINER} has no such setting; turn it off"
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match=said):
        command("musubi-tuner", more=(flag,))


def test_musubi_tuner_is_not_given_a_dataset_with_a_key_of_ours(part: Any, tmp_path: Path) -> None:
    engine, config = part("nodes.jobs.engine"), part("nodes.jobs.config")
    both = [{"num_repeats": 2}, {"validation_split": 0.5}]
    checkout = {"path": "/one", "python": "/p"}
    (tmp_path / "config.json").write_text(json.dumps({"engine": "musubi-tuner", "musubi_tuner": checkout}), encoding="utf-8")
    with pytest.raises(
        part("backend.musubi_backend.errors").UserError, match="validation_split: musubi-tuner's dataset files have no such key"
    ):
        engine.refuse_own_keys(config.load(tmp_path), both)
    engine.refuse_own_keys(config.load(tmp_path), both[:1])
    (tmp_path / "config.json").unlink()
    engine.refuse_own_keys(config.load(tmp_path), both)


def test_several_processes_on_windows_meet_in_a_store_that_pytorch_has_there(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "USE_LIBUV" not in command(launch=True, processes=2).env
    monkeypatch.setattr("sys.platform", "win32")
    assert command(launch=True, processes=2).env["USE_LIBUV"] == "0"
    assert "USE_LIBUV" not in command(launch=True).env
    monkeypatch.setenv("USE_LIBUV", "1")
    assert command(launch=True, processes=2).env["USE_LIBUV"] == "1"
