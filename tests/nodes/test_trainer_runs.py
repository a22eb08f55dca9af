"""The trainer node with a small program in the place of the backend's python: what makes another training, what continues in the same one,
and what is left of one that failed or was stopped."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def trained(make_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One finished training with every widget at its default."""
    made = make_bench(tmp_path_factory.mktemp("trained") / "home")
    assert made.train().text.startswith(str(made.home / "models/loras/musubi_tuner/my_lora.safetensors"))
    return made


ANOTHER = {
    "config_network_dim": 8, "config_network_alpha": 4.0, "config_network_dropout": 0.1, "config_mixed_precision": "fp16",
    "config_gradient_accumulation_steps": 2, "config_split_attn": True, "config_training_seed": 7, "config_scale_weight_norms": 1.0,
    "config_fp8_base": True, "config_compile": True, "config_network": "LoHa", "config_rank_dropout": 0.25,
    "config_attention": "flash_attn",
    "optimizer_optimizer_type": "adamw", "optimizer_learning_rate": 1e-4, "optimizer_lr_scheduler": "cosine",
    "optimizer_max_grad_norm": 0.5, "optimizer_optimizer_args": "weight_decay=0.1", "sampling_timestep_sampling": "sigma",
    "sampling_discrete_flow_shift": 5.0, "sampling_min_timestep": 10, "sampling_max_timestep": 900, "models_task": "t2v-14B",
    "run_id": 1, "processes": 2, "output_name": "other", "data_resolution": [32, 32],
}  # fmt: skip
SAME = {
    "config_gradient_checkpointing": False, "config_save_every_n_steps": 10, "config_save_last_n_steps": 3, "config_save_state": False,
    "config_save_last_n_steps_state": 5, "config_save_state_on_train_end": True, "config_max_data_loader_n_workers": 0,
    "config_persistent_data_loader_workers": False, "config_blocks_to_swap": 1, "models_vae": "/another/vae.safetensors",
    "sampling_sample_seed": 8, "resume": "never", "config_expert_settings": {"network_args": ["verbose=True"]},
}  # fmt: skip
AGAIN_IN_THE_SAME = {
    "config_max_train_steps": 3000, "config_max_train_epochs": 3, "config_save_precision": "fp16", "config_training_comment": "words",
}  # fmt: skip


@pytest.mark.parametrize("name", ANOTHER)
def test_what_changes_the_numbers_is_another_training(trained: Any, name: str) -> None:
    runs, calls = trained.runs, len(trained.calls)
    trained.train(**{name: ANOTHER[name]})
    assert len(trained.runs - runs) == 1 and len(trained.calls) == calls + 1
    assert trained.train(**{name: ANOTHER[name]}).text.count("nothing that decides it changed") == 1, "and is found again"
    assert len(trained.calls) == calls + 1


@pytest.mark.parametrize("name", SAME)
def test_what_changes_nothing_trains_nothing(trained: Any, name: str) -> None:
    runs, calls = trained.runs, len(trained.calls)
    assert "nothing that decides it changed" in trained.train(**{name: SAME[name]}).text
    assert trained.runs == runs and len(trained.calls) == calls


@pytest.mark.parametrize("name", AGAIN_IN_THE_SAME)
def test_another_length_or_file_is_made_in_the_same_run(trained: Any, name: str) -> None:
    runs, calls = trained.runs, len(trained.calls)
    trained.train(**{name: AGAIN_IN_THE_SAME[name]})
    assert trained.runs == runs and len(trained.calls) == calls + 1
    assert "nothing that decides it changed" in trained.train().text, "the LoRA of before is still known"


def test_prompts_of_samples_are_no_other_training_but_reach_the_trainer(bench: Any) -> None:
    times = {"sampling_sample_every_n_steps": 5}
    bench.train(sampling_sample_prompts="a cat\n", **times)
    written = next((bench.home / "runs").iterdir()) / "sample_prompts.json"
    assert [entry["prompt"] for entry in json.loads(written.read_text(encoding="utf-8"))] == ["a cat"]
    assert str(written) in bench.calls[0] and str(bench.vae) in bench.calls[0], "samples need the VAE"
    assert "nothing that decides it changed" in bench.train(sampling_sample_prompts="a dog\n", **times).text
    assert "nothing that decides it changed" in bench.train().text


def test_where_epochs_are_set_the_number_of_steps_decides_nothing(bench: Any) -> None:
    bench.train(config_max_train_epochs=2, config_max_train_steps=100)
    assert "nothing that decides it changed" in bench.train(config_max_train_epochs=2, config_max_train_steps=200).text
    bench.train(config_max_train_epochs=3, config_max_train_steps=100)
    assert len(bench.calls) == 2 and len(bench.runs) == 1


@pytest.mark.parametrize("changed", ["clip", "caption", "transformer"])
def test_changed_files_are_another_training(bench: Any, changed: str) -> None:
    bench.train()
    file = {"clip": bench.cache / bench.names["latents"], "caption": bench.cache / bench.names["text"], "transformer": bench.dit}[changed]
    file.write_bytes(b"others")
    bench.train()
    assert len(bench.runs) == len(bench.calls) == 2


def test_another_vae_or_a_clip_of_another_model_is_the_same_training(bench: Any) -> None:
    bench.train()
    bench.vae.write_bytes(b"others")
    (bench.cache / bench.names["text"].replace("_wan", "_hv")).write_bytes(b"cached for another model")
    assert "nothing that decides it changed" in bench.train().text


def test_another_engine_is_another_training_and_gets_its_own_words(bench: Any) -> None:
    bench.train()
    bench.engine("musubi-tuner")
    checkout = bench.home / "musubi"
    checkout.mkdir()
    (checkout / "wan_train_network.py").write_text("")
    bench.train()
    assert len(bench.runs) == 2
    assert bench.calls[0][:3] == ["-m", "musubi_backend", "wan_train_network"]
    assert bench.calls[1][:2] == ["-m", "accelerate.commands.launch"] and str(checkout / "wan_train_network.py") in bench.calls[1]


def test_several_processes_go_through_the_launcher(bench: Any) -> None:
    bench.train(processes=2)
    words = bench.calls[0]
    assert words[:2] == ["-m", "accelerate.commands.launch"] and words[words.index("--num_processes") + 1] == "2"
    assert words[words.index("--mixed_precision") + 1] == "bf16"


def state(bench: Any, step: int) -> Path:
    """A whole state in the one run there is, as a trainer leaves it."""
    run = next((bench.home / "runs").iterdir())
    folder = run / f"my_lora-step{step:08d}-state"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "optimizer.bin").write_bytes(b"moments")
    place = {"format": 1, "step": step, "epoch": 0, "batch": 0, "micro_step": step, "seed": 1, "losses": [], "history": []}
    files = {"optimizer.bin": {"size": 7, "crc32": zlib.crc32(b"moments")}}
    (folder / "training_state.json").write_text(json.dumps({**place, "files": files}))
    return folder


def resumed(words: list[str]) -> str | None:
    return next((word for before, word in zip(["", *words], words, strict=False) if before == "--resume"), None) or next(
        (word.partition("=")[2] for word in words if word.startswith("--resume=")), None
    )


def test_resume_auto_goes_on_and_never_begins_anew(bench: Any) -> None:
    bench.plan(exit=1, log="ERROR: broken\n")
    with pytest.raises(bench.part("backend.musubi_backend.errors").UserError):
        bench.train()
    kept = state(bench, 20)
    bench.plan()
    bench.train(resume="never")
    assert resumed(bench.calls[-1]) is None
    bench.train(config_max_train_steps=3000)
    assert resumed(bench.calls[-1]) == str(kept)
    bench.train(config_max_train_steps=10)
    assert resumed(bench.calls[-1]) is None, "a state beyond the length asked for is no start"
    bench.train(config_max_train_steps=20)
    assert resumed(bench.calls[-1]) == str(kept)
    bench.train(config_max_train_steps=4000, optimizer_learning_rate=1e-5)
    assert resumed(bench.calls[-1]) is None, "another training does not continue from it"


def test_a_failed_training_says_why_and_the_next_gets_the_gpu(bench: Any) -> None:
    noise = "".join(f"steps: {number}/9000 avr_loss=0.1\r" for number in range(9000))
    bench.plan(exit=1, log=f"{noise}\nERROR: clip.mp4 is broken\nremove it\n\n{noise[:60_000]}")
    error = bench.part("backend.musubi_backend.errors").UserError
    with pytest.raises(error, match=r"^clip.mp4 is broken\nremove it\nThe whole log: "):
        bench.train()
    with pytest.raises(error, match=r"clip\.mp4"):
        bench.train()
    bench.plan()
    assert "nothing that decides" not in bench.train().text, "a failed training that left a file is not taken for a finished one"
    assert len(bench.calls) == 3 and len(bench.runs) == 1


@pytest.mark.parametrize(("code", "words"), [(3, "was stopped from outside; run again"), (1, "ended with code 1"), (-9, "was killed")])
def test_each_way_to_end_is_said_and_is_no_result(bench: Any, code: int, words: str) -> None:
    error = bench.part("backend.musubi_backend.errors").UserError
    bench.plan(exit=code)
    if code < 0:
        bench.program.write_text(bench.program.read_text().replace('sys.exit(plan.get("exit", 0))', f"os.kill(os.getpid(), {-code})"))
    with pytest.raises(error, match=words):
        bench.train()
    assert not [*(bench.home / "models").rglob("*.safetensors")], "nothing is published"
    assert next((bench.home / "jobs").iterdir()).joinpath("status.json").read_text().count('"stopped"') == (code == 3)


def test_a_trainer_that_writes_no_lora_is_named_with_its_log(bench: Any) -> None:
    bench.plan(endings=[])
    with pytest.raises(bench.part("backend.musubi_backend.errors").UserError, match=r"ended without writing .*my_lora.safetensors.*log"):
        bench.train()


def test_the_result_names_lora_curve_and_run(bench: Any) -> None:
    result = bench.train()
    lora = bench.home / "models/loras/musubi_tuner/my_lora.safetensors"
    assert lora.read_text() == "weights" and result.files == (lora,)
    assert result.values[:3] == (os.path.join("musubi_tuner", lora.name), str(lora), str(lora))  # noqa: PTH118 (a name in a list)
    job = result.values[4]
    assert Path(job["run"]).parent == bench.home / "runs" and Path(job["folder"]).parent == bench.home / "jobs"
    assert Path(job["curve"]).read_text(encoding="utf-8").startswith("<svg")
    assert bench.part("nodes.runs").Run(Path(job["run"]), "my_lora").losses() == [0.5]


def test_a_converted_lora_is_renewed_with_its_lora(make_bench: Any, tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "home", "hv")
    bench.train()
    published = bench.home / "models/loras/musubi_tuner/my_lora.safetensors"
    assert published.read_text() == "converted weights"
    assert len(bench.calls) == 2 and bench.calls[1][2] == "convert_lora"
    assert "nothing that decides it changed" in bench.train().text
    assert len(bench.calls) == 2, "it is not converted a second time"
    bench.plan(lora="other weights")
    published.unlink()
    bench.train(config_training_comment="again")
    assert published.read_text() == "converted other weights"
    kept = next(one for one in (bench.home / "runs").glob("*/results/*/my_lora.safetensors") if one.read_text() == "weights")
    converted = kept.parent / "comfyui" / kept.name
    os.utime(converted, ns=(kept.stat().st_mtime_ns - 10, kept.stat().st_mtime_ns - 10))
    bench.train()
    assert len(bench.calls) == 5, "older than its LoRA, it is made again"


def test_caches_and_models_that_do_not_belong_together_are_rejected(bench: Any) -> None:
    error = bench.part("backend.musubi_backend.errors").UserError
    for text, words in (
        ({"architecture": "wan", "dataset": {"toml": "another", "datasets": []}}, "different datasets"),
        ({"architecture": "hv", "dataset": bench.dataset()}, "text was cached for hv, the models are"),
    ):
        with pytest.raises(error, match=words):
            bench.train(text=text)
    with pytest.raises(error, match="models are"):
        bench.train(models_architecture="hv")
    assert not bench.calls


def test_a_setting_that_the_model_does_not_have_is_named(make_bench: Any, tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "home", "hv")
    with pytest.raises(bench.part("backend.musubi_backend.errors").UserError, match=r"^fp8_scaled: HunyuanVideo has no such setting"):
        bench.train(config_fp8_base=True, config_fp8_scaled=True)
    assert not bench.calls


def test_the_other_expert_counts_too(bench: Any) -> None:
    high = bench.home / "high.safetensors"
    high.write_bytes(b"model")
    experts = {"models_task": "t2v-A14B", "models_dit_high_noise": str(high)}
    bench.train(**experts)
    assert "nothing that decides it changed" in bench.train(**experts).text
    high.write_bytes(b"others")
    bench.train(**experts)
    assert len(bench.runs) == 2


def test_musubi_tuner_gets_no_setting_of_ours_and_no_state_but_a_precision_it_knows(bench: Any) -> None:
    bench.train()
    run = next((bench.home / "runs").iterdir())
    kept = state(bench, 20)
    bench.engine("musubi-tuner")
    (bench.home / "musubi").mkdir()
    (bench.home / "musubi" / "wan_train_network.py").write_text("")
    error = bench.part("backend.musubi_backend.errors").UserError
    with pytest.raises(error, match="musubi-tuner cannot continue at the step of a state"):
        bench.train(continue_state=str(kept))
    with pytest.raises(error, match="musubi-tuner's wan_train_network has no such setting"):
        bench.train(models_task="t2v-A14B", models_dit_high_noise=str(bench.dit), experts="both", lora_per_expert=True)
    with pytest.raises(error, match="optimizer_type: musubi-tuner has no HinaAdamW; choose adamw"):
        bench.train(optimizer_optimizer_type="HinaAdamW")
    assert len(bench.calls) == 1 and run.is_dir()
    bench.train()
    assert "bf16" in bench.calls[1] and resumed(bench.calls[1]) is None


def test_another_beginning_is_another_training(bench: Any) -> None:
    bench.train()
    first = state(bench, 20)
    bench.train(continue_state=str(first))
    assert len(bench.runs) == 2 and resumed(bench.calls[1]) == str(first)
    (first / "model.safetensors").write_bytes((3).to_bytes(8, "little") + b"{} ")
    bench.train(continue_state=str(first))
    assert len(bench.runs) == 3, "a state of other weights"
    lora = bench.host.loras_dir() / "old.safetensors"
    lora.write_bytes(b"lora")
    bench.train(network_weights=lora.name)
    lora.write_bytes(b"other")
    bench.train(network_weights=lora.name)
    assert len(bench.runs) == 5
    below = bench.node("ExpertSettings", base_lora_1=lora.name, base_multiplier_1=0.5)
    for content in (b"below", b"another one below"):
        lora.write_bytes(content)
        bench.train(config_expert_settings=below)
    words = bench.calls[-1]
    assert len(bench.runs) == 7 and words[words.index("--base_weights") + 1] == str(lora)
    assert words[words.index("--base_weights_multiplier") + 1] == "0.5"


def test_datasets_of_different_windows_are_rejected(bench: Any, part: Any) -> None:
    follows, error = part("nodes.training_values")._follows, part("backend.musubi_backend.errors").UserError
    assert follows({"datasets": [{"fp_latent_window_size": 5}, {"fp_latent_window_size": 5}]})["latent_window_size"] == 5
    with pytest.raises(error, match="different latent_window_size: 5, 9"):
        follows({"datasets": [{"fp_latent_window_size": 5}, {"fp_latent_window_size": 9}]})


def test_musubi_tuner_is_given_the_precision_that_auto_comes_to(bench: Any) -> None:
    entry = json.dumps({"blocks.0.ffn.0.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    bench.dit.write_bytes(len(entry).to_bytes(8, "little") + entry + bytes(8))
    bench.engine("musubi-tuner")
    (bench.home / "musubi").mkdir()
    (bench.home / "musubi" / "wan_train_network.py").write_text("")
    bench.train(config_mixed_precision="auto")
    words = bench.calls[0]
    own = words[words.index(str(bench.home / "musubi" / "wan_train_network.py")) :]
    assert own[own.index("--mixed_precision") + 1] == "bf16" and "auto" not in words


def test_what_a_trainer_warns_of_is_shown_with_its_result_also_when_that_is_used_again(bench: Any, make_bench: Any, tmp_path: Path) -> None:
    bench.plan(warnings=["--network_dim 64 is above the width", "NOTHING WAS LEARNED", "--network_dim 64 is above the width of 2 layers"])
    bench.train()
    shown = ["NOTHING WAS LEARNED", "network_dim 64 is above the width of 2 layers"]
    assert bench.host.warnings == shown, "in widgets' words, and what a later line says too once"
    bench.host.warnings.clear()
    bench.train()
    assert len(bench.calls) == 1 and bench.host.warnings == shown


def test_a_result_shows_its_warnings_below_it_and_not_more_than_can_be_read(part: Any) -> None:
    with_warnings = part("nodes.spec").with_warnings
    assert with_warnings("done", []) == "done" and with_warnings("", ["a"]) == "Note: a"
    lines = with_warnings("done", [str(number) for number in range(23)]).splitlines()
    assert (lines[:2], len(lines), lines[-1]) == (["done", "Note: 0"], 22, "and 3 more; the log has all")


def test_what_a_widget_has_by_itself_and_does_not_act_is_not_passed_on(bench: Any) -> None:
    """Nobody asked for it, so nothing is to be said of it; what somebody changed is passed on, and said."""

    def reported(**changes: Any) -> set[str]:
        bench.train(**changes)
        return {word.partition("=")[0] for word in bench.calls[-1] if word.startswith("--")} & {
            "--discrete_flow_shift",
            "--save_last_n_steps_state",
        }

    assert reported() == {"--discrete_flow_shift", "--save_last_n_steps_state"}
    assert reported(sampling_timestep_sampling="uniform", config_save_every_n_steps=0) == set()
    assert reported(sampling_timestep_sampling="uniform", sampling_discrete_flow_shift=5.0) == {
        "--discrete_flow_shift",
        "--save_last_n_steps_state",
    }
