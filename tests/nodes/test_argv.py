"""Whatever the widgets say, the command line that comes of it parses in musubi-tuner's own parsers and in ours."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LIMIT = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
_TYPES = {"str": str, "int": int, "float": float, "Path": Path, "_int_or_float": float, None: None}


IMAGE = "猫 'x'.png"


class Refused(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise Refused(message)


@pytest.fixture(scope="module")
def contract(shared: Path) -> Any:
    """tool -> musubi-tuner's parser, rebuilt from its recorded flags."""
    scripts = json.loads((shared / "contracts" / "musubi_cli.json").read_text(encoding="utf-8"))["scripts"]

    def parser(tool: str) -> argparse.ArgumentParser:
        made = _Parser(prog=tool, allow_abbrev=False, add_help=False)
        for flag in scripts[tool]["flags"]:
            options: dict[str, Any] = {"action": flag["action"], "default": flag["default"], "dest": flag["dest"]}
            if flag["action"] == "store":
                kind = _TYPES[flag["type"]]
                options |= {"nargs": flag["nargs"], "choices": flag["choices"], "required": flag["required"]}
                options |= {"type": kind} if kind else {}
            made.add_argument(*flag["option_strings"], **options)
        return made

    return parser


class PaperHost:
    """A host without files: names become paths."""

    keeps_metadata = True

    def __init__(self, root: Path) -> None:
        self.home = self.input_dir = self.output_dir = self.temp_dir = root
        (root / IMAGE).write_bytes(b"")

    def allowed_roots(self) -> list[Path]:
        return [self.home]

    def input_files(self, suffixes: tuple[str, ...]) -> list[str]:
        return ["clip 1.mp4"]

    def model_names(self, key: str) -> list[str]:
        return ["a b.safetensors", "猫/'x'.safetensors", "--dit.safetensors"]

    def model_path(self, key: str, name: str) -> Path:
        return self.home / key / name


def text() -> st.SearchStrategy[str]:
    return st.one_of(st.text(max_size=30), st.sampled_from(["--dit", "-1", "--w 5", "a=b", "猫 '\"\\", "-", "--"])).map(
        lambda t: t.replace("\0", "")
    )


def value_of(entry: Any, host: Any, part: Any) -> st.SearchStrategy[Any]:
    """Any value the widget can take."""
    if entry.kind == "BOOLEAN":
        return st.booleans()
    if entry.kind == "INT":
        return st.one_of(st.just(entry.default), st.integers(int(entry.lowest), int(entry.maximum)))
    if entry.kind == "FLOAT":
        return st.one_of(st.just(entry.default), st.floats(entry.lowest, entry.maximum, allow_nan=False))
    if entry.kind == "COMBO":
        return st.sampled_from(part("nodes.checks").choices_of(entry, host))
    return st.one_of(st.just(entry.default), text())


def widgets(spec: Any, host: Any, part: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({entry.name: value_of(entry, host, part) for entry in spec.inputs if entry.is_widget})


def mostly_fitting(spec: Any, host: Any, part: Any) -> st.SearchStrategy[dict[str, Any]]:
    """As `widgets`, with sizes and lengths that the model can do, most prompts not empty."""
    sizes = st.integers(1, 64).map(lambda n: 16 * n)
    fitting = {
        "width": sizes,
        "height": sizes,
        "video_length": st.integers(0, 40).map(lambda n: 4 * n + 1),
        "slg_layers": st.sampled_from(["", "9", "9,10"]),
        "vae_spatial_tile_sample_min_size": st.sampled_from([0, 256]),
        "output_name": st.just("my_lora"),
        "filename_prefix": st.just("a/b"),
        "prompt_file": st.just(""),
        "prompts": st.sampled_from(["", "a dog --d 7\n# not this\n猫"]),
    }
    names = {entry.name for entry in spec.inputs}
    fitting |= {name: st.sampled_from(["", IMAGE]) for name in names if name.endswith(("_path", "_paths"))}
    drawn = st.fixed_dictionaries({name: strategy for name, strategy in fitting.items() if name in names})
    return st.builds(lambda values, fit: {**values, **fit}, widgets(spec, host, part), drawn)


FILES = {
    "wan": ("dit", "vae", "t5", "clip", "dit_high_noise"),
    "hv": ("dit", "vae", "text_encoder1", "text_encoder2"),
    "fp": ("dit", "vae", "text_encoder1", "text_encoder2", "image_encoder"),
}
TITLES = {"wan": "Wan", "hv": "HunyuanVideo", "fp": "FramePack"}
GENERATORS = {"wan": "WanVideoGenerator", "hv": "HunyuanVideoGenerator", "fp": "FramePackVideoGenerator"}
ARCHITECTURES = list(TITLES)


def models(part: Any, architecture: str, task: str | None = None) -> dict[str, Any]:
    """What a node of model paths gives."""
    task = task or part("backend.musubi_backend.architectures").cards()[architecture].tasks[0].name
    return {"architecture": architecture, "task": task, **{name: f"/m/{name} 1.safetensors" for name in FILES[architecture]}}


DATASET = {"toml": "/d/猫 1/dataset.toml", "datasets": []}


def parsed(contract: Any, part: Any, tool: str, values: dict[str, Any]) -> argparse.Namespace | None:
    """The namespace of musubi-tuner's parser, or None where `values` are rejected in words before any command line exists."""
    try:
        argv = part("backend.musubi_backend.options.argv").to_argv(tool, values)
    except part("backend.musubi_backend.errors").UserError:
        return None
    return contract(tool).parse_args(argv)


def run(node: Any, host: Any, part: Any, values: dict[str, Any]) -> Any:
    """The node's dict of settings, or None if the node rejects the widgets."""
    if part("nodes.checks").check(node, host, values):
        return None
    try:
        return asyncio.run(node.run(host, **part("nodes.checks").complete(node.spec, values))).values[0]
    except part("backend.musubi_backend.errors").UserError:
        return None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_training_parses(contract: Any, part: Any, tmp_path: Path, architecture: str) -> None:
    module = part("nodes.training_settings")
    host = PaperHost(tmp_path)
    trainer = part("nodes.catalog").BY_NAME[f"{TITLES[architecture]}LoRATrainer"]()
    tool = part("backend.musubi_backend.options.registry").tool_names(trainer.card)["train"]
    nodes = [module.LoRATrainingConfig(), part("nodes.optimizer_settings").OptimizerConfig(), module.SamplingConfig(), trainer]
    known = part("backend.musubi_backend.options.registry").options_for(tool)
    tasks = st.sampled_from([task.name for task in trainer.card.tasks])
    refused: list[bool] = []

    @LIMIT
    @given(tasks, *(mostly_fitting(node.spec, host, part) for node in nodes))
    def holds(task: str, lora: dict[str, Any], optimizer: dict[str, Any], sampling: dict[str, Any], own: dict[str, Any]) -> None:
        made = [run(node, host, part, values) for node, values in zip(nodes[:3], (lora, optimizer, sampling), strict=True)]
        refused.append(None in made or part("nodes.checks").check(trainer, host, own) != [])
        if refused[-1]:
            return
        given_models = models(part, architecture, task)
        sockets = {"latents": {"dataset": DATASET}, "text": {}, "lora_config": made[0], "optimizer": made[1], "sampling": made[2]}
        inputs = part("nodes.checks").complete(trainer.spec, {**own, "models": given_models, **sockets})
        try:
            values = {
                **trainer.values(inputs, inputs["latents"]["dataset"]),
                "output_dir": "/o",
                "output_name": "猫",
                "resume": "/o/x-state",
            }
        except part("backend.musubi_backend.errors").UserError:  # a setting of another architecture, or of one expert for both
            refused[-1] = True
            return
        if values.get("mixed_precision") == "auto":  # musubi-tuner is reported the precision of the file
            values["mixed_precision"] = "bf16"
        if made[2]["prompts"]:
            values["sample_prompts"] = "/o/prompts.json"
        values = {name: value for name, value in values.items() if not known[name].own}  # rejected where musubi-tuner is to train
        namespace = parsed(contract, part, tool, values)
        assert namespace is not None
        assert namespace.dit in (given_models["dit"], given_models.get("dit_high_noise"))
        assert namespace.learning_rate == pytest.approx(optimizer["learning_rate"], rel=1e-12)
        other = {"LoHa": "networks.loha", "LoKr": "networks.lokr"}
        assert namespace.network_module == other.get(lora["network"], trainer.card.network_module)

    holds()
    assert not all(refused)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_generation_parses_and_no_text_becomes_a_flag(contract: Any, part: Any, tmp_path: Path, architecture: str) -> None:
    host, node = PaperHost(tmp_path), part("nodes.catalog").BY_NAME[GENERATORS[architecture]]()
    tool = part("backend.musubi_backend.options.registry").tool_names(node.card)["generate"]
    tasks = st.sampled_from([task.name for task in node.card.tasks])
    accepted: list[bool] = []

    @LIMIT
    @given(tasks, mostly_fitting(node.spec, host, part))
    def holds(task: str, values: dict[str, Any]) -> None:
        accepted.append(part("nodes.checks").check(node, host, values) == [])
        if not accepted[-1]:
            return
        given_models = models(part, architecture, task)
        inputs = part("nodes.checks").complete(node.spec, {**values, "models": given_models})
        chosen = {**node.values(host, inputs), **part("nodes.media_inputs").values(host, node.family.sources, inputs, tmp_path)}
        chosen.pop("skip_mismatched", None)  # our own, rejected where musubi-tuner is to generate
        namespace = parsed(contract, part, tool, {**chosen, "save_path": "/s"})
        assert namespace is not None
        assert (namespace.prompt or "") == values["prompt"]
        assert namespace.dit == given_models["dit"]
        assert namespace.video_size == [values["height"], values["width"]]
        if values["start_image_path"]:
            assert namespace.image_path == str(tmp_path / IMAGE)

    holds()
    assert any(accepted)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_batch_parses(contract: Any, part: Any, tmp_path: Path, architecture: str) -> None:
    host, node = PaperHost(tmp_path), part("nodes.batch").BatchProcessor()
    card = part("backend.musubi_backend.architectures").cards()[architecture]
    tool = part("backend.musubi_backend.options.registry").tool_names(card)["generate"]
    own = {name for name, option in part("backend.musubi_backend.options.registry").options_for(tool).items() if option.own}
    accepted: list[bool] = []

    @LIMIT
    @given(mostly_fitting(node.spec, host, part))
    def holds(values: dict[str, Any]) -> None:
        if part("nodes.checks").check(node, host, values):
            return
        inputs = part("nodes.checks").complete(node.spec, {**values, "models": models(part, architecture)})
        try:
            chosen = {**part("nodes.prompt_batch").values(node.spec, host, inputs), "from_file": "/o/prompts.txt", "save_path": "/s"}
        except part("backend.musubi_backend.errors").UserError as error:
            assert "has no effect for" in str(error) or "these models have none" in str(error)
            return
        chosen.pop("skip_mismatched", None)  # as for one generation
        if "from_file" in own:  # of HunyuanVideo, which musubi-tuner makes one by one
            del chosen["from_file"]
            chosen["prompt"] = "x"
        namespace = parsed(contract, part, tool, chosen)
        assert namespace is not None
        assert namespace.video_size == [values["height"], values["width"]]
        accepted.append(True)

    holds()
    assert accepted


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["VAELatentCache", "TextEncoderCache"])
def test_every_caching_parses(contract: Any, part: Any, tmp_path: Path, name: str, architecture: str) -> None:
    module = part("nodes.cache")
    host, node = PaperHost(tmp_path), getattr(module, name)()
    card = part("backend.musubi_backend.architectures").cards()[architecture]
    verb = "cache_latents" if name == "VAELatentCache" else "cache_text"
    tool = part("backend.musubi_backend.options.registry").tool_names(card)[verb]
    tasks = st.sampled_from([task.name for task in card.tasks])

    @LIMIT
    @given(tasks, st.booleans(), widgets(node.spec, host, part))
    def holds(task: str, one_frame: bool, values: dict[str, Any]) -> None:
        if part("nodes.checks").check(node, host, values):
            return
        dataset = {**DATASET, "datasets": [{"fp_1f_target_index": 1}] if one_frame else []}
        inputs = part("nodes.checks").complete(node.spec, {**values, "dataset": dataset, "models": models(part, architecture, task)})
        try:
            chosen = module.caching_values(node.spec, verb, inputs)
        except part("backend.musubi_backend.errors").UserError as error:
            assert "has no effect for" in str(error)
            return
        namespace = parsed(contract, part, tool, chosen)
        assert namespace is not None
        assert namespace.skip_existing is values["skip_existing"]
        if verb == "cache_latents" and architecture != "hv":
            assert namespace.one_frame is one_frame

    holds()


def test_defaults_are_accepted_by_our_own_checks(part: Any, tmp_path: Path) -> None:
    host = PaperHost(tmp_path)
    for node_class in part("nodes.catalog").NODES:
        node = node_class()
        defaults = {
            entry.name: entry.default
            for entry in node.spec.inputs
            if entry.is_widget and entry.default is not None and entry.name not in ("path", "filename_prefix")
        }
        if "prompt" in defaults:
            defaults["prompt"] = "a dog"
        assert part("nodes.checks").check(node, host, defaults) == [], node.spec.id


def test_arguments_of_the_optimizer_cannot_become_flags(part: Any, tmp_path: Path) -> None:
    node = part("nodes.optimizer_settings").OptimizerConfig()
    for bad in ("--output_dir=/etc", "weight_decay", "a=b; c", "__import__('os')=1"):
        assert "name=value" in str(part("nodes.checks").check(node, PaperHost(tmp_path), {"optimizer_args": bad})), bad
    good = asyncio.run(
        node.run(
            PaperHost(tmp_path), **part("nodes.checks").complete(node.spec, {"optimizer_args": "weight_decay=0.01\nbetas=(0.9, 0.99)"})
        )
    )
    assert good.values[0]["optimizer_args"] == ["weight_decay=0.01", "betas=(0.9,0.99)"]


def test_a_value_from_another_node_is_checked_like_a_typed_one(part: Any, tmp_path: Path) -> None:
    prepared, settings_module = part("nodes.checks").prepared, part("nodes.training_settings")
    node = settings_module.LoRATrainingConfig()
    for values, words in (
        ({"attention": "save_state_on_train_end"}, "not there"),
        ({"max_train_steps": "5"}, "whole number"),
        ({"network_alpha": float("nan")}, "finite"),
        ({"gradient_checkpointing": False, "gradient_checkpointing_cpu_offload": True}, "turn that on"),
    ):
        with pytest.raises(part("backend.musubi_backend.errors").UserError, match=words):
            prepared(node, PaperHost(tmp_path), values)
    assert prepared(node, PaperHost(tmp_path), {"network_alpha": 4})["network_alpha"] == 4.0


@pytest.mark.parametrize(("name", "socket"), [("WanLoRATrainer", "models"), ("BatchProcessor", "models"), ("LoRAPostHocEMA", "job")])
def test_what_nodes_hand_each_other_cannot_be_written_into_a_prompt(part: Any, tmp_path: Path, name: str, socket: str) -> None:
    node = part("nodes.catalog").BY_NAME[name]()
    said = part("nodes.checks").check(node, PaperHost(tmp_path), {socket: {"architecture": "wan", "dit": "/etc/passwd", "run": "/etc"}})
    assert [problem.input for problem in said] == [socket] and said[0].text.startswith(f"{socket}: connect it")
