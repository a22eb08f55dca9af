"""Two processes train one LoRA: they share the batches, average their gradients, leave and resume together; with and without the
transformer spread over them."""

from __future__ import annotations

import re
import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import group
import pytest
import torch
from musubi_backend.training.distributed import share
from musubi_backend.training.randomness import StepRandomness
from musubi_backend.weights.safetensors_file import load, read_header
from recorded_training import prepared

pytest.importorskip("accelerate")
TOGETHER = {"max_train_steps": 6, "network_args": ["module_dropout=0.4"], "validation_split": 0.3, "validate_every_n_steps": 6}
SPREAD = ("--fsdp", "--gradient_checkpointing")


def test_batches_are_shared_evenly_and_none_is_left_out() -> None:
    assert share(list("abcde"), 0, 2) == ["a", "c", "e"] and share(list("abcde"), 1, 2) == ["b", "d", "a"]
    assert share(list("ab"), 2, 3) == ["a"]
    assert share([1, 2, 3], 0, 1) == [1, 2, 3]


def test_a_transformer_cannot_be_spread_over_one_process(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.refused("alone", "--fsdp") == 1
    assert "--fsdp spreads the transformer over several processes, and there is one" in capsys.readouterr().err


def test_processes_that_cannot_meet_are_told_where_and_why(project: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        process = project.start("apart", environment=place)
        said = process.communicate()[0]
    assert process.returncode == 1 and "Traceback" not in said and "frame #" not in said, said
    assert f"ERROR: the processes of this training did not meet at 127.0.0.1:{port} (The server socket has failed to listen" in said


@pytest.fixture(scope="module")
def pair(
    model_and_caches: tuple[Path, Path], build: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> group.Group:
    """Two processes that play all scenes, since starting them is what takes the time."""
    folder = tmp_path_factory.mktemp("pair")
    project = build.project(folder, *model_and_caches)
    state = folder / "out/whole/cat-step00000003-state"
    (folder / "other").mkdir()
    fewer = build.caches(folder / "other", clips=3)

    scene = partial(group.scene, project)
    few = {"max_train_steps": 4, "network_args": ["module_dropout=0.97"]}
    scaled = {"max_train_steps": 2, "network_module": "networks.loha"}
    scenes = [
        {"name": "means", "story": "means"},
        scene("whole", "--save_state", **TOGETHER, seed=None, save_every_n_steps=3),
        scene("rest", **TOGETHER, seed=None, resume=state),
        scene("spread", *SPREAD, "--save_state", **TOGETHER, seed=None, resume=state, save_every_n_steps=1),
        scene("left out", **few),
        scene("left out spread", *SPREAD, **few),
        scene("fp8", "--fp8_base", "--fp8_scaled", **scaled),
        scene("fp8 spread", "--fp8_base", "--fp8_scaled", *SPREAD, **scaled),
        scene("gradients", story="gradients"),
        scene("gradients spread", *SPREAD, story="gradients"),
        scene("stopped", *SPREAD, story="stop", **TOGETHER),
        scene("other data", others={"dataset_config": fewer, "learning_rate": "2e-2"}),
    ]
    experts = {
        "task": "t2v-A14B", "dit_high_noise": project.dit, "steps_per_expert": 2, "max_train_steps": 4,
        "timestep_boundary": 675, "validation_split": 0.3, "network_args": ["module_dropout=0.4"],
    }  # fmt: skip
    scenes += [scene("experts", "--lora_per_expert", **experts), scene("experts spread", "--lora_per_expert", *SPREAD, **experts)]
    full = {"max_train_steps": 3, "vram": 8, "network_dropout": 0.1}
    scenes += [scene("less", "--gradient_checkpointing", **full), scene("ran out", story="run out", **full)]
    scenes += [scene(story, story=story, **full) for story in ("build fails", "not finite")]
    if request.config.getoption("--full"):
        scenes += [scene(story, story=story, **full) for story in ("run out again", "nothing helps")]
        saved = {**experts, "save_every_n_steps": 2}
        scenes += [scene(name, *flags, "--save_state", **saved) for name, flags in (("shared", ()), ("shared spread", SPREAD))]
        scenes += [scene("shared rest", *SPREAD, **experts, resume=folder / "out/shared/cat-step00000002-state")]
        samples = sampling(folder, build)
        scenes += [scene(name, *flags, **samples) for name, flags in (("sampled", ()), ("sampled spread", SPREAD))]
        scenes += [scene("stopped sampling", *SPREAD, story="stop sampling", **samples)]
    return group.played(project, folder, scenes)


def sampling(folder: Path, build: SimpleNamespace) -> dict[str, Any]:
    """Values for a training of the demo model with samples."""
    from musubi_backend.demo.models import write_models

    models = write_models(folder / "models")
    (folder / "sampled clips").mkdir()
    config = build.caches(folder / "sampled clips", clips=2, frames=5, side=32, text_dim=64)
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(f"{what} --w 32 --h 32 --s 2 --d 3 --l 1" for what in ("a cat", "a dog")), encoding="utf-8")
    models = {name: models[name] for name in ("dit", "vae", "t5")}
    return {**models, "dataset_config": config, "sample_prompts": prompts, "sample_every_n_steps": 1, "max_train_steps": 2}


@pytest.mark.slow
def test_two_real_processes_agree_on_the_means(pair: group.Group) -> None:
    common = [[6.0, 7.0], [2.0, 2.0], 0.5, 40, True, False, [[0, 5], [1, 5]]]
    assert pair.results["means"] == [[*common, True], [*common, False]]


@pytest.mark.slow
def test_two_processes_train_and_resume_to_the_same_bits_with_a_seed_nobody_chose(
    pair: group.Group, same: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each would draw a seed of its own, and drop LoRA modules of its own; then their LoRAs would start, and continue, apart from
    each other, and the state, which is the first one's, would lead elsewhere."""
    assert same.bits(pair.lora("rest"), pair.lora("whole"))
    first, second = pair.texts["whole"]
    assert "running training" in first and "running training" not in second, "only one process reports"
    assert "num batches per epoch / 1epochのバッチ数: 2" in first
    seed = read_header(pair.folder / "out/whole/cat.safetensors").metadata["ss_seed"]
    pair.project.train("alone", seed=seed, **TOGETHER)
    assert not same.bits(pair.project.lora("alone"), pair.lora("whole"))
    alone = "".join(capsys.readouterr())
    assert "validation loss" not in second
    before = re.findall(r"validation loss after step 0: (\S+),", first + alone)
    assert len(before) == 2 and before[0] == before[1], "two processes measure what one does"
    last = [re.findall(r"validation loss after step 6: (\S+),", text) for text in (first, pair.texts["rest"][0], pair.texts["spread"][0])]
    assert last[0] == last[1] == last[2] and len(last[0]) == 1, "also where one of them has no item of its own"


@pytest.mark.slow
def test_a_transformer_that_is_spread_learns_the_same_bits_and_its_state_is_anyones(pair: group.Group, same: SimpleNamespace) -> None:
    """From the state of processes that had all weights, to one process that has them: other LoRA modules were left out in each."""
    assert same.bits(pair.lora("spread"), pair.lora("whole"))
    assert same.bits(pair.lora("fp8 spread"), pair.lora("fp8")) and any("hada_w1_a" in name for name in pair.lora("fp8")), "a LoHa"
    state = pair.folder / "out/spread/cat-step00000004-state"
    assert same.bits(load(state / "model.safetensors"), load(pair.folder / "out/spread/cat-step00000004.safetensors"))
    pair.project.train("one goes on", resume=state, seed=None, **TOGETHER)
    assert pair.project.lora("one goes on").keys() == pair.lora("spread").keys()


@pytest.mark.slow
def test_processes_that_leave_out_other_lora_modules_gather_the_same_blocks(pair: group.Group, same: SimpleNamespace) -> None:
    """With nearly all left out, gradients of one process may end above a block that those of another one still need."""
    assert same.bits(pair.lora("left out spread"), pair.lora("left out"))


@pytest.mark.slow
def test_gradients_are_those_of_one_process_with_all_batches_and_each_keeps_half_of_the_weights(pair: group.Group) -> None:
    """To rounding: the sum of two is divided by two either way."""
    loop = prepared("wan", "wan_train_network", pair.project.argv("one")[1:])
    batches = loop._own_batches(0)[:2]
    for rank in range(2):
        loop.randomness = StepRandomness(loop.run.seed, rank, torch.device("cpu"))
        loop._backward(loop._load(batches[rank]), 0)
    for name in ("gradients", "gradients spread"):
        for rank in range(2):
            found = group.gradients_of(pair.folder, name, rank)
            assert len(found) == len(loop.parameters)
            for number, parameter in enumerate(loop.parameters):
                assert parameter.grad is not None
                torch.testing.assert_close(found[str(number)], parameter.grad / 2, rtol=1e-5, atol=1e-7)
    (every, kept), _ = pair.results["gradients spread"]
    assert kept * 2 == every and pair.results["gradients"] == [[every, every]] * 2


@pytest.mark.slow
def test_a_stop_that_one_was_asked_for_ends_both_with_a_state_where_the_weights_are_spread(pair: group.Group) -> None:
    assert pair.results["stopped"] == [3, 3], pair.texts["stopped"]
    assert all("stopped after step" in text for text in pair.texts["stopped"])
    assert (pair.folder / "out/stopped/cat-step00000002-state").is_dir() or (pair.folder / "out/stopped/cat-step00000003-state").is_dir()


@pytest.mark.slow
def test_all_step_down_when_the_memory_of_one_is_full(pair: group.Group, same: SimpleNamespace) -> None:
    assert same.bits(pair.lora("ran out"), pair.lora("less"))
    where = ("in another process", "while training ")
    for text, place in zip(pair.texts["ran out"], where, strict=True):
        assert re.search(rf"memory was full {place}.* goes on after step 1 with less: --gradient_checkpointing\.", text), text


@pytest.mark.slow
@pytest.mark.full(reason="three trainings of two processes, for ends of the one above")
@pytest.mark.parametrize(
    ("story", "said"),
    [
        ("run out again", "the GPU's memory is full"),
        ("nothing helps", "the GPU's memory is full"),
    ],
)
def test_all_end_where_less_does_not_help_with_what_was_learned_and_one_message(pair: group.Group, story: str, said: str) -> None:
    assert pair.results[story] == [1, 1], pair.texts[story]
    assert said in pair.texts[story][1] and "Traceback" not in "".join(pair.texts[story])
    assert (pair.folder / "out" / story / "cat-step00000001-state").is_dir()


@pytest.mark.slow
def test_both_end_with_one_message_where_one_cannot_be_made_anew_with_less(pair: group.Group) -> None:
    """The one that could has stepped down by then, and waits for the other."""
    first, second = pair.texts["build fails"]
    assert pair.results["build fails"] == [1, 1], first + second
    assert second.count("ERROR:") == 1 and "the weight file is gone" in second
    assert "ERROR:" not in first and "goes on after step" not in first and "Traceback" not in first + second
    assert (pair.folder / "out/build fails/cat-step00000001-state").is_dir()


@pytest.mark.slow
def test_the_process_whose_loss_is_not_finite_names_its_items_and_both_save_what_they_learned(pair: group.Group) -> None:
    """Only the loss of one is no number: the gradients of both are fine."""
    first, second = pair.texts["not finite"]
    assert pair.results["not finite"] == [1, 1], first + second
    assert re.search(r"ERROR.*the loss is not finite at step 2, training clip", second), second
    assert re.search(r"ERROR.*the loss is not finite at step 2, training what another process names\.", first), first
    assert (pair.folder / "out/not finite/cat-step00000001-state").is_dir()


@pytest.mark.slow
def test_two_experts_that_are_spread_learn_the_same_bits(pair: group.Group, same: SimpleNamespace) -> None:
    """All processes train the same one in a step, and validate with the same one, also where one has no item of its own."""
    assert pair.results["experts"] == pair.results["experts spread"] == [0, 0], "\n".join(pair.texts["experts spread"])
    for expert in ("high", "low"):
        learned = [load(pair.folder / "out" / name / f"cat-{expert}.safetensors") for name in ("experts", "experts spread")]
        assert same.bits(*learned) and any(one.any() for name, one in learned[0].items() if "lora_up" in name)
    losses = [re.findall(r"validation loss after step (\d): (\S+),", pair.texts[name][0]) for name in ("experts", "experts spread")]
    assert losses[0] == losses[1] and len(losses[0]) > 1


@pytest.mark.slow
@pytest.mark.full(reason="three trainings of two processes, for one LoRA where the one above has two")
def test_a_lora_that_two_spread_experts_share_learns_the_same_bits_and_goes_on_with_them(pair: group.Group, same: SimpleNamespace) -> None:
    """From a state of processes that had all weights, in processes that share them."""
    assert same.bits(pair.lora("shared spread"), pair.lora("shared"))
    assert same.bits(pair.lora("shared rest"), pair.lora("shared"))


@pytest.mark.slow
def test_processes_with_other_data_or_settings_are_refused_and_told_in_what_they_differ(pair: group.Group) -> None:
    assert pair.results["other data"] == [1, 1]
    said = "process 1 of 2 has another one of: the items of the dataset and their caches, --learning_rate"
    assert all(said in text for text in pair.texts["other data"])


@pytest.mark.slow
@pytest.mark.full(reason="loads the VAE and the text encoder in both; test_samples makes them in one process")
def test_all_make_the_samples_where_the_weights_are_spread_and_the_main_one_writes_them(pair: group.Group, same: SimpleNamespace) -> None:
    pytest.importorskip("diffusers")
    assert same.bits(pair.lora("sampled spread"), pair.lora("sampled"))
    made = [
        [path.read_bytes() for path in sorted((pair.folder / "out" / name / "sample").iterdir())] for name in ("sampled", "sampled spread")
    ]
    assert len(made[0]) == 4 and made[0] == made[1]
    assert "generating sample images at step: 1" in pair.texts["sampled spread"][1]
    assert pair.results["stopped sampling"] == [3, 3], pair.texts["stopped sampling"]
    assert "no more samples: a stop was asked for" in pair.texts["stopped sampling"][0]
    assert (pair.folder / "out/stopped sampling/cat-step00000001-state").is_dir()
