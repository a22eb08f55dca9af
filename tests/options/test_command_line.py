"""What the command line takes, rejects, and says about it."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.__main__ import main
from musubi_backend.architectures import cards
from musubi_backend.errors import UserError
from musubi_backend.options.former import ELSEWHERE, FORMER
from musubi_backend.options.parser import _unknown, parse, read
from musubi_backend.options.published import files_found
from musubi_backend.options.registry import options_for, tool, tools
from musubi_backend.options.rules import _RULES
from musubi_backend.options.values import default_of

TRAIN, GENERATE = "wan_train_network", "wan_generate_video"
_SPREAD_EXPERTS = {"fsdp": True, "dit_high_noise": "h", "steps_per_expert": 2, "timestep_sampling": "shift"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Paths of empty files that stand for weights and a dataset."""
    paths = {name: tmp_path / f"{name} 日本.bin" for name in ("dit", "vae", "t5", "dataset_config")}
    for path in paths.values():
        path.touch()
    return {name: str(path) for name, path in paths.items()}


def train_argv(files: dict[str, str]) -> list[str]:
    argv = ["--dataset_config", files["dataset_config"], "--dit", files["dit"], "--output_dir", "out", "--output_name", "lora"]
    return [*argv, "--network_module", "networks.lora_wan", "--optimizer_type", "AdamW", "--sdpa"]


def test_training_gets_every_flag_with_musubi_tuners_defaults(files: dict[str, str]) -> None:
    args = parse(TRAIN, [*train_argv(files), "--network_dim", "8", "--lr_warmup_steps", "10%"])
    assert args.dit == files["dit"] and args.sdpa and args.network_dim == 8 and args.lr_warmup_steps == 0.1
    assert args.learning_rate == 2e-6 and args.max_train_steps == 1600 and args.fp8_scaled is False and args.optimizer_args is None
    assert set(vars(args)) == set(options_for(TRAIN))


def test_what_a_share_of_steps_looks_like() -> None:
    for text, expected in {"100": 100, "1.0": 1, "0.25": 0.25, "5%": 0.05, "0": 0}.items():
        value = read(tool(TRAIN), ["--lr_warmup_steps", text]).lr_warmup_steps
        assert value == expected
        assert isinstance(value, int) == (expected >= 1)


def test_a_default_list_is_fresh_each_time() -> None:
    read(tool(GENERATE), []).video_size.append(3)
    assert read(tool(GENERATE), []).video_size == [256, 256]


def test_a_value_may_begin_with_dashes() -> None:
    assert read(tool(GENERATE), ["--prompt=--dark forest", "--lora_multiplier", "0.5", "-0.5"]).prompt == "--dark forest"
    with pytest.raises(UserError, match="--flag=VALUE"):
        read(tool(GENERATE), ["--prompt", "--dark"])
    with pytest.raises(UserError, match=r"--flag=VALUE"):
        read(tool(GENERATE), ["--prompt", "--"])


def test_flags_may_be_abbreviated_as_in_musubi_tuner() -> None:
    assert read(tool(TRAIN), ["--max_train_e", "3"]).max_train_epochs == 3
    with pytest.raises(UserError, match="ambiguous"):
        read(tool(TRAIN), ["--save_last", "3"])


def _seed_flags(shared: Path) -> set[str]:
    """Every flag of the command lines that this program was asked for with."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted((shared / "seeds").glob("*.md"))]
    return {flag for text in texts for flag in re.findall(r"(?<![-\w])--[a-z][a-z0-9_]+", text)}


def test_flags_of_other_versions_are_answered_with_what_they_are_called_here(shared: Path) -> None:
    flags = {option.flag for other in tools().values() for option in other.options}
    assert flags & {*FORMER, *ELSEWHERE} == {"--batch_size", "--rank"}, "those are flags of other tools, with the same meaning"
    nowhere = _seed_flags(shared) - flags
    prefixes = {flag for flag in nowhere if any(other.startswith(flag) for other in flags)}  # which argparse completes, or names
    assert "--llm_path" in nowhere and nowhere - prefixes <= {*FORMER, *ELSEWHERE}
    for former, today in (("--solver", "--sample_solver"), ("--num_inference_steps", "--infer_steps"), ("--input_lora", "--lora_weight")):
        with pytest.raises(UserError, match=f"has no flag {former}; it is {today} today"):
            read(tool(GENERATE), [former, "1"])


def test_nothing_is_suggested_that_does_not_exist_or_is_not_supported(shared: Path) -> None:
    asked = {*_seed_flags(shared), *FORMER, *ELSEWHERE, "--huggingface_tokem", "--log_tracker_confg", "--sage_atn"}
    answered = set()
    for target in {one.verb: one for one in reversed(tools().values())}.values():
        ours = {option.flag for option in target.options if not option.unsupported}
        for flag in asked - {option.flag for option in target.options}:
            said = _unknown(target, [flag]).removeprefix(f"{target.name} has no flag {flag}").removesuffix(". All flags: --help")
            named = set(re.findall(r"--[a-z]\w+", said)) - {"--flag"}
            assert named <= ours, (target.name, flag, said)
            answered |= {flag} if "today" in said else set()
    assert answered == {*FORMER, *ELSEWHERE}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train_batch_size", "1"], "it is batch_size in the .* dataset file today"),
        (["--lerning_rate", "1"], "did you mean '--learning_rate'"),
        (["--infer_steps", "20"], "wan_generate_video, .* have it"),
        (["stray words"], "does not know what to do with 'stray words'"),
        (["--learning_rate", "fast"], "--learning_rate: must be a number, not 'fast'"),
        (["--learning_rate", "nan"], "finite"),
        (["--network_dim", "0"], "--network_dim: must be at least 1, not 0"),
        (["--max_timestep", "1001"], "must be at most 1000"),
        (["--lr_warmup_steps", "some"], "a number or a percentage"),
        (["--timestep_sampling", "shfit"], "did you mean 'shift'"),
        (["--sage_attn"], "--sage_attn is not supported: .* Use the musubi-tuner engine"),
        (["--huggingface_repo_id", "me/lora"], "nothing leaves the machine"),
    ],
)
def test_bad_arguments_are_rejected_in_words(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tool(TRAIN), argv)


def test_asking_for_the_default_of_a_rejected_flag_is_fine() -> None:
    args = read(tool(TRAIN), ["--blocks_to_swap", "0", "--dynamo_backend", "NO", "--block_swap_ring_size", "2"])
    assert args.blocks_to_swap == 0
    assert read(tool(GENERATE), ["--blocks_to_swap", "0", "--compile_mode", "default"]).blocks_to_swap == 0


def test_all_that_training_lacks_is_said_at_once() -> None:
    with pytest.raises(UserError) as error:
        parse(TRAIN, ["--sample_every_n_steps", "5", "--min_timestep", "500", "--max_timestep", "400"])
    message = str(error.value)
    for name in ("dataset_config", "dit", "output_dir", "output_name", "network_module", "optimizer_type", "sdpa", "sample_prompts"):
        assert f"--{name}" in message
    assert "networks.lora_wan" in message and "--min_timestep 500 must be below --max_timestep 400" in message


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--network_weights", "nowhere.safetensors"], "--network_weights: nowhere.safetensors does not exist"),
        (["--resume", "FILE"], "--resume: .* is a file, not a folder"),
        (["--network_weights", "."], "is a folder, not a file"),
        (["--network_weights", "x" * 5000], "cannot be read|does not exist"),
        (["--gradient_checkpointing_cpu_offload"], "needs --gradient_checkpointing"),
        (["--dim_from_weights"], "needs --network_weights"),
        (["--output_name", "a/b"], "--output_name 'a/b' must be a name without folders"),
        (["--base_weights_multiplier", "1", "2"], "2 values for 0 --base_weights"),
        (["--sample_prompts", "FILE"], "--vae is required to make samples"),
    ],
)
def test_training_settings_that_do_not_go_together(files: dict[str, str], extra: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(TRAIN, [*train_argv(files), *(files["vae"] if word == "FILE" else word for word in extra)])


@pytest.mark.parametrize(
    ("tool_name", "given", "words"),
    [
        (TRAIN, {"min_timestep": 400, "max_timestep": 400}, "--min_timestep 400 must be below --max_timestep 400"),
        (TRAIN, {"min_timestep": 400, "max_timestep": 401}, ""),
        (
            TRAIN,
            {"base_weights": ["x"], "base_weights_multiplier": [1.0, 2.0]},
            "--base_weights_multiplier has 2 values for 1 --base_weights",
        ),
        (TRAIN, {"base_weights": ["x", "y"], "base_weights_multiplier": [1.0, 2.0]}, ""),
        (TRAIN, {"blocks_to_swap": 1, "compile": True}, "--blocks_to_swap with --compile needs --gradient_checkpointing"),
        (TRAIN, {"blocks_to_swap": 1, "dynamo_backend": "INDUCTOR"}, "--blocks_to_swap with --compile needs --gradient_checkpointing"),
        (TRAIN, {"blocks_to_swap": 1, "compile": True, "gradient_checkpointing": True}, ""),
        (TRAIN, {"keep_attention_blocks": 1, "compile": True, "gradient_checkpointing": True}, ""),
        (
            TRAIN,
            {"keep_attention_blocks": 1, "dynamo_backend": "INDUCTOR", "gradient_checkpointing": True, "split_attn": True},
            "--keep_attention_blocks with --compile keeps PyTorch's attention only: use --sdpa without --split_attn",
        ),
        (
            TRAIN,
            {"offload_attention_blocks": 1, "compile": True, "gradient_checkpointing": True, "sdpa": False, "flash_attn": True},
            "--offload_attention_blocks with --compile keeps PyTorch's attention only: use --sdpa without --flash_attn",
        ),
        (TRAIN, {"offload_attention_blocks": 1, "gradient_checkpointing": True}, ""),
        (TRAIN, {"w8a8": "int8", "fp8_base": True}, "--w8a8 and --fp8_base exclude each other"),
        (TRAIN, {"w8a8": "int8", "compile": True}, ""),
        (TRAIN, {"fsdp": True, "blocks_to_swap": 1}, "--fsdp and --blocks_to_swap exclude each other"),
        (TRAIN, {"fsdp": True, "compile": True}, "--fsdp and --compile exclude each other"),
        (TRAIN, {**_SPREAD_EXPERTS, "steps_per_expert": 1}, "--fsdp and --dit_high_noise need --steps_per_expert, such as 10"),
        (TRAIN, {**_SPREAD_EXPERTS, "offload_inactive_dit": True}, "--fsdp and --offload_inactive_dit exclude each other"),
        (TRAIN, {**_SPREAD_EXPERTS, "timestep_sampling": "flux_shift"}, "do not go with --timestep_sampling flux_shift, which follows"),
        (TRAIN, _SPREAD_EXPERTS, ""),
        (TRAIN, {"offload_inactive_dit": True, "blocks_to_swap": 1}, "--offload_inactive_dit and --blocks_to_swap exclude each other"),
        (GENERATE, {"offload_inactive_dit": True, "lazy_loading": True}, "--offload_inactive_dit and --lazy_loading exclude each other"),
        (GENERATE, {"lora_multiplier": [1.0, 1.0]}, "--lora_multiplier has 2 values for 0 --lora_weight"),
        (
            GENERATE,
            {"lora_weight_high_noise": ["x"], "lora_multiplier_high_noise": [1.0, 1.0]},
            "--lora_multiplier_high_noise has 2 values",
        ),
        (GENERATE, {"save_merged_model": "x", "fp8_scaled": True}, "--save_merged_model writes the weights as they are"),
        (GENERATE, {"save_merged_model": "x", "prompt": None, "t5": None, "vae": None}, ""),
        (GENERATE, {"save_merged_model": "x", "dit": None}, "--dit is required"),
        ("hv_generate_video", {"latent_path": ["x", "y"]}, ""),
        ("merge_lora", {"lora_weight": ["x"], "lora_multiplier": [1.0, 0.5]}, "--lora_multiplier has 2 values for 1 --lora_weight"),
    ],
)
def test_rules_between_settings_at_their_edges(tool_name: str, given: dict[str, Any], words: str) -> None:
    target = tool(tool_name)
    values = {option.name: default_of(option) for option in target.options}
    fitting = {"dit": "d", "vae": "v", "t5": "t", "text_encoder1": "t", "text_encoder2": "t", "prompt": "p", "network_module": "n"}
    fitting |= {"dataset_config": "c", "output_dir": "o", "output_name": "o", "optimizer_type": "AdamW", "sdpa": True, "save_path": "s"}
    values |= {name: value for name, value in fitting.items() if name in values} | given
    problems = list(_RULES[target.verb](target, Namespace(**values)))
    assert (words in "".join(problems)) if words else not problems, problems


def test_showing_timesteps_needs_no_model(files: dict[str, str]) -> None:
    assert (
        parse(TRAIN, ["--show_timesteps", "console", "--dataset_config", files["dataset_config"], "--save_last_n_steps", "3"]).dit is None
    )


def test_a_published_folder_fills_in_what_is_not_named(tmp_path: Path) -> None:
    card, target = cards()["wan"], tool(GENERATE)
    args = read(target, ["--ckpt_dir", str(tmp_path), "--vae", "my.safetensors"])
    with pytest.raises(UserError, match="holds none of the files that Wan"):
        files_found(target, args)
    published = {part.name: part.published for part in card.parts}
    for patterns in published.values():
        for number in "21":
            file = tmp_path / patterns[0].replace("*", number)
            file.parent.mkdir(exist_ok=True)
            file.touch()
    first = {part: str(tmp_path / patterns[0].replace("*", "1")) for part, patterns in published.items() if part != "vae"}
    assert files_found(target, args) == first, "without the VAE, which is named"
    with pytest.raises(UserError, match="is not a folder"):
        files_found(target, read(target, ["--ckpt_dir", str(tmp_path / "none")]))


def test_a_state_that_is_not_there_is_left_to_the_training(files: dict[str, str]) -> None:
    assert parse(TRAIN, [*train_argv(files), "--resume", "none-state"]).resume == "none-state"


def test_what_generating_needs_depends_on_what_is_asked(files: dict[str, str]) -> None:
    dit, vae, t5 = ([f"--{name}", files[name]] for name in ("dit", "vae", "t5"))
    save = ["--save_path", "out"]
    assert parse(GENERATE, [*save, *dit, *vae, *t5, "--prompt", "a cat"]).infer_steps is None
    parse(GENERATE, [*save, *dit, *t5, "--prompt", "a cat", "--output_type", "latent"])
    parse(GENERATE, [*save, *vae, "--latent_path", files["dit"]])
    for argv, message in (
        ([*dit, *vae, *t5, "--prompt", "a cat"], "--save_path is required"),
        ([*save, *dit, *vae, *t5], "one of --prompt"),
        ([*save, *dit, *vae, "--prompt", "a cat"], "--t5 is required"),
        ([*save, *dit, *t5, "--prompt", "a cat"], "--vae is required"),
        ([*save, *vae, "--latent_path", files["dit"], "--output_type", "both"], "not both"),
        ([*save, *vae, "--latent_path", files["dit"], files["t5"]], "takes one file, not 2"),
        ([*save, *dit, *vae, *t5, "--from_file", files["dit"], "--interactive"], "exclude each other"),
    ):
        with pytest.raises(UserError, match=message):
            parse(GENERATE, argv)


def test_caching_needs_its_model_unless_it_only_shows(files: dict[str, str]) -> None:
    dataset = ["--dataset_config", files["dataset_config"]]
    with pytest.raises(UserError, match="--vae is required"):
        parse("wan_cache_latents", dataset)
    assert parse("wan_cache_latents", [*dataset, "--debug_mode", "video"]).vae is None
    with pytest.raises(UserError, match="--t5 is required"):
        parse("wan_cache_text_encoder_outputs", dataset)


def test_errors_end_the_program_with_one_block_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([TRAIN, "--lerning_rate", "1"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("ERROR: ") and "Traceback" not in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wan_train_netwrk", "did you mean 'wan_train_network'"),
        ("flux_2_train_network", "does not do yet. Use the musubi-tuner engine"),
        ("xyzzy", "there is no tool 'xyzzy'. Tools: "),
    ],
)
def test_tools_that_are_not_there(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 1
    assert message in capsys.readouterr().err


def test_help_names_tools_and_explains_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0 and main(["--version"]) == 0
    overview = capsys.readouterr().out
    assert TRAIN in overview and "musubi_backend 0." in overview
    with pytest.raises(SystemExit) as end:
        main([TRAIN, "--help"])
    assert end.value.code == 0
    explained = capsys.readouterr().out
    for flag in options_for(TRAIN):
        assert f"--{flag}" in explained
    assert "default 1600, 1 to 10000000, steps" in explained and "Not supported" in explained
