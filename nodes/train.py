"""The trainer node: starts or continues a training, and hands the LoRA to the rest of the graph."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..backend.musubi_backend import content
from ..backend.musubi_backend.architectures.card import Card
from ..backend.musubi_backend.architectures.precision import check_precision, followed, stored_precision
from ..backend.musubi_backend.architectures.widgets import FamilyNodes
from ..backend.musubi_backend.counted import counted
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.lora.settings import deciding
from ..backend.musubi_backend.options import rules
from ..backend.musubi_backend.options.needs import unmet
from ..backend.musubi_backend.options.option import FILE, LENGTH, LORA_CONVERT, START, TRAIN, WEIGHTS
from ..backend.musubi_backend.options.registry import options_for, tool_names
from ..backend.musubi_backend.options.registry import tool as find_tool
from ..backend.musubi_backend.options.values import default_of
from ..backend.musubi_backend.place import in_words
from . import experts, packages, rates, several_machines, training_start, training_values
from .background import submit
from .cache import LATENTS, TEXT, cache_stamps
from .families import own_inputs
from .jobs import config as configuration
from .jobs.config import engine_stamp
from .jobs.engine import refuse_own, refuse_own_optimizer
from .jobs.folder import JobFolder
from .jobs.follow import run_tool, run_training, warn
from .jobs.guard import plain_name
from .jobs.index import index_of
from .jobs.runner import Job
from .jobs.task import AUTO, Task, Training
from .jobs.wording import in_widgets
from .loss_curve import loss_map, write_image
from .models import MODELS, card_of, check_architecture
from .optimizer_settings import OPTIMIZER, OptimizerConfig
from .publishing import conversion, listed, publish, try_to_publish, wanted_place
from .runs import JOB, Run
from .spec import ANY, Host, Input, Node, NodeSpec, Output, Problem, Result, refused
from .split_models import all_files
from .training_record import validation_losses
from .training_settings import LORA_CONFIG, SAMPLING, LoRATrainingConfig, SamplingConfig
from .widgets import settings


def _spec(card: Card, family: FamilyNodes) -> NodeSpec:
    tool = tool_names(card)[TRAIN]
    return NodeSpec(
        id=f"MusubiTuner_{card.node_name}LoRATrainer",
        display_name=f"{card.family} LoRA Trainer",
        category="MusubiTuner/Train",
        description="Train a LoRA on cached latents and captions. The result lies in ComfyUI's loras folder and can be used in the "
            "same graph. Cancelling saves the state; running again continues there. With nothing changed the finished LoRA is given "
            "at once.",
        inputs=(
            Input("models", MODELS, f"From {card.family} Model Paths"),
            Input("latents", LATENTS, "From VAE Latent Cache", late=True),
            Input("text", TEXT, "From Text Encoder Cache, of the same dataset", late=True),
            Input("lora_config", LORA_CONFIG, "From LoRA Training Config"),
            Input("optimizer", OPTIMIZER, "From Optimizer Config"),
            Input("output_name", "STRING", "Name of the LoRA: musubi_tuner/<name>.safetensors in ComfyUI's loras "
                "folder.", default="my_lora"),
            Input("resume", "COMBO", "auto: continue from the newest saved state of this training, if there is one; more steps, other "
                "samples or blocks_to_swap are the same training. never: begin anew.",
                  default="auto", choices=("auto", "never")),
            Input("processes", "INT", "Processes to train with, one per GPU.", default=1, minimum=1, maximum=64, advanced=True),
            Input("run_id", "INT", "Nothing changed, but train again? Enter another number.", default=0, minimum=0, maximum=2**31 - 1),
            Input("sampling", SAMPLING, "From Sampling Config; without it noise levels are drawn as musubi-tuner does by "
                "default.", optional=True),
            *experts.trainer_inputs(card, tool),
            *own_inputs(tool, family.trainer),
            *training_start.INPUTS,
            *several_machines.INPUTS,
            *experts.added_trainer_inputs(card, tool),
        ),
        outputs=(
            Output("lora_name", ANY, "Name for LoraLoaderModelOnly and other loaders"),
            Output("lora_path", "STRING", "The file"),
            Output("lora_model", "LORA_MODEL", "The weights, for core's LoRA model nodes"),
            Output("loss_map", "LOSS_MAP", "For core's loss graph node"),
            Output("job", JOB, "The run and its log"),
            *experts.trainer_outputs(card),
        ),
        is_output=True,
    )  # fmt: skip


class LoRATrainer(Node):
    """The trainer of a family; `lora_trainer` makes one of it."""

    card: ClassVar[Card]

    def own_values(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """option name -> value of the widgets that only this family has; wins over what the other nodes say."""
        return experts.training_values(self.card, inputs, settings(self.spec.inputs, inputs))

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        if "output_name" in constants:
            yield from refused("output_name", plain_name, constants["output_name"], "output_name")
        if constants.get("continue_state"):
            yield from refused("continue_state", training_start.state_folder, host, constants["continue_state"])
        yield from several_machines.problems(constants, training_start.BACKGROUND)

    def precheck(self, host: Host, **inputs: Any) -> str | None:
        """Models and settings that do not go together are rejected before anything is cached for them."""
        models, config = inputs["models"], inputs["lora_config"]
        check_architecture(self.card, models, self.spec.display_name)
        dit = self.own_values(inputs).get("dit", models["dit"])
        check_precision(stored_precision(dit, self.card), config.get("mixed_precision"), self.card, dit)
        training_start.check(inputs)
        steps = None if config.get("max_train_epochs") else config["max_train_steps"]
        wrong = rates.problems({**config, **inputs["optimizer"]}, steps)
        return "\n".join([*(problem.text for problem in wrong), *self._contradictions(host, inputs)]) or None

    def _contradictions(self, host: Host, inputs: dict[str, Any]) -> Iterator[str]:
        """What the trainer's own rules reject of the settings, whatever the dataset is."""
        if configuration.load(host.home).engine != "builtin":
            return  # which has rules of its own
        tool = find_tool(tool_names(self.card)[TRAIN])
        values = self.values(inputs)
        stand_ins = {"dataset_config": values["dit"], "output_dir": str(host.home), "output_name": inputs["output_name"]}
        samples = {"sample_prompts": values["dit"]} if training_values.prompts_of(inputs["sampling"]) else {}
        args = Namespace(**{option.name: default_of(option) for option in tool.options} | values | stand_ins | samples)
        yield from (in_widgets(tool.name, sentence) for sentence in rules.problems(tool, args))
        yield from packages.problems(host.home, values)

    def fingerprint(self, host: Host, **constants: Any) -> str:
        return engine_stamp(host.home)

    async def run(self, host: Host, **inputs: Any) -> Result:
        check_architecture(self.card, inputs["models"], self.spec.display_name)
        _check_match(inputs, card_of(inputs["models"]))
        name = plain_name(inputs["output_name"], "output_name")
        settings = configuration.load(host.home)
        begin = await asyncio.to_thread(training_start.of, host, inputs)
        values = {**self.values(inputs, inputs["latents"]["dataset"]), **begin.values}
        refuse_own(settings, tool_names(self.card)[TRAIN], [name for name, value in values.items() if value not in (None, False)])
        refuse_own_optimizer(settings, values.get("optimizer_type", ""))
        if begin.state and settings.engine != "builtin":
            raise UserError("musubi-tuner cannot continue at the step of a state: choose the engine builtin, or network_weights instead")
        run = Run(host.home / "runs" / f"{name}-{self._identity(host, inputs, values, begin)}", name, experts.endings(values))
        key = content.digest(self._of_effect(values, LENGTH, FILE))
        finished = run.finished(key)
        if finished is not None:
            warn(host, tool_names(self.card)[TRAIN], finished.get("warnings", ()))
            job, note = finished["job"], "nothing that decides it changed since it was trained; enter another run_id to train again"
            return await self.result(host, run, [await self.for_comfyui(host, lora) for lora in run.results(key)], job, note)
        try_to_publish(host.loras_dir(), [f"{name}{ending}" for ending in run.endings], "output_name")
        task = self._task(host, run, values, inputs, begin, settings.engine)
        if inputs["run"] == training_start.BACKGROUND:
            return self._queued(host, run, task)
        job = await self._train(host, run, key, task, begin)
        if task.machines.rank:
            return self._elsewhere(host, run, job)
        return await self.result(host, run, [await self.for_comfyui(host, lora) for lora in run.made(key)], job, "")

    def _identity(self, host: Host, inputs: dict[str, Any], values: dict[str, Any], begin: training_start.Start) -> str:
        """Of what changes the trained numbers: trainings that share it share a run, whatever their length."""
        dataset = inputs["latents"]["dataset"]
        files = [values[part.name] for part in self.card.transformers if values.get(part.name)]
        return content.digest(
            {**self._of_effect(values, WEIGHTS, START), "dataset_config": dataset["datasets"]},
            begin.stamp,
            [content.stamp(file) for file in all_files(map(Path, [*files, *values.get("base_weights", ())]))],
            cache_stamps(dataset, card_of(inputs["models"])),
            inputs["processes"] if inputs["machines"] == 1 else [inputs["processes"], inputs["machines"]],
            inputs["run_id"],
            engine_stamp(host.home),
        )

    def _task(self, host: Host, run: Run, values: dict[str, Any], inputs: dict[str, Any], begin: training_start.Start, engine: str) -> Task:
        """What is to be trained, with the file of its sample prompts written. musubi-tuner counts a resumed run from step 0 again and would
        train too long, so with it none is resumed."""
        run.path.mkdir(parents=True, exist_ok=True)
        precision = self._precision(values)
        lengths, results = self._of_effect(values, LENGTH), self._of_effect(values, LENGTH, FILE)
        if engine != "builtin":
            values = {**values, "mixed_precision": precision}
        chosen = {**values, "output_dir": str(run.path), "output_name": run.name, "logging_dir": str(run.path / "logs")}
        chosen |= training_values.write_prompts(inputs["sampling"], run.path)
        resume = [AUTO] if inputs["resume"] == "auto" and engine == "builtin" else []
        training = Training(
            run.name,
            run.path.name,
            run.endings,
            _acting(tool_names(self.card)[TRAIN], chosen),
            (*resume, *([str(begin.state.folder)] if begin.state else [])),
            results,
            lengths,
            str(host.loras_dir()),
        )
        tool = tool_names(self.card)[TRAIN]
        machines = several_machines.machines(inputs)
        return Task(tool, launch=True, processes=inputs["processes"], mixed_precision=precision, machines=machines, training=training)

    def _queued(self, host: Host, run: Run, task: Task) -> Result:
        """Hand it to the background, unless it is there already. There is no LoRA yet, so nothing behind this node runs."""
        assert task.training is not None
        job, line = submit.of_run(host.home, task.training), f"{run.name} is queued or being trained already in the background"
        if job is None:
            gpus = tuple(host.gpus())
            host.free_gpu_memory()
            job = submit.add(host.home, task.changed(background=True, gpus=gpus), host.workflow())
            line = f"{run.name} is queued in the background"
        folder = host.home / "jobs" / job
        host.show_job(job)
        wanted = [listed(wanted_place(host.loras_dir(), f"{run.name}{ending}")) for ending in run.endings]
        text = f"{line} and continues when ComfyUI is closed. Run again for the LoRA when it is trained ({wanted[0]})"
        host.progress(0, 1, text)
        values = self._without_lora(host, run, folder, f"{run.name} is still being trained in the background")
        return Result(values, text=text, line=line, files=(folder / "status.json",), page_data={"musubi_job": [{"id": job}]})

    def _elsewhere(self, host: Host, run: Run, job: str) -> Result:
        """The training is done, and its LoRA is on the main machine: nothing behind this node runs here."""
        text = f"{run.name} is trained; the main machine has the LoRA"
        return Result(self._without_lora(host, run, Path(job), f"{run.name} is on the main machine"), text=text, line=text)

    def _without_lora(self, host: Host, run: Run, job: Path, why: str) -> tuple[Any, ...]:
        """The outputs of a training whose LoRA is not here. job: its folder."""
        nothing = host.not_yet(why)
        value = {"folder": str(job), "run": str(run.path), "curve": str(run.path / "loss.svg")}
        of_expert = () if self.card.expert is None else (nothing,)
        return nothing, nothing, nothing, loss_map(run.losses()), value, *of_expert

    def _of_effect(self, values: dict[str, Any], *effects: str) -> dict[str, Any]:
        """The values of the options that change this (see `Option.effect`). Where epochs are set, the number of steps decides nothing."""
        options = options_for(tool_names(self.card)[TRAIN])
        chosen = {name: value for name, value in values.items() if options[name].effect in effects}
        if chosen.get("max_train_epochs"):
            chosen.pop("max_train_steps", None)
        network = deciding(chosen.pop("network_args", None))
        if network:
            chosen["network_args"] = network
        return chosen

    def values(self, inputs: dict[str, Any], dataset: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """option name -> value of a training, without where it writes and what it resumes; and without what only its dataset says, unless
        that is given."""
        common, own = training_values.common_values(self.card, inputs, dataset), self.own_values(inputs)
        return {**common, **{name: value for name, value in own.items() if value is not False or name not in common}}

    async def for_comfyui(self, host: Host, lora: Path) -> Path:
        """A finished LoRA as ComfyUI's own loader takes it: itself, or where ComfyUI has other names for its layers, converted."""
        todo = conversion(self.card, lora)
        if todo is None:
            return lora
        if todo[1]:
            await run_tool(host, LORA_CONVERT, todo[1], foreign=False, gpu=False, warns=False)
        return todo[0]

    async def result(self, host: Host, run: Run, loras: list[Path], job: str, note: str) -> Result:
        """Publish the LoRAs and hand them out; the first is the one that continues by name."""
        published = [publish(lora, host.loras_dir(), f"{run.name}{ending}") for lora, ending in zip(loras, run.endings, strict=True)]
        name, path, _ = published[0]
        said = [text for _, _, text in published if text]
        losses = run.losses()
        curve = run.path / "loss.svg"
        validation = await asyncio.to_thread(validation_losses, index_of(host.home), run.path.name)
        try:
            write_image(curve, run.losses_by_step(), run.name, validation)
        except OSError as error:
            host.warnings.append(f"no loss curve: {in_words(error)}")
        value = {"folder": job, "run": str(run.path), "curve": str(curve)}
        further = (str(other) for _, other, _ in published[1:])
        lines = [f"{path}" + (f" ({note})" if note else ""), *further, *said, f"loss curve: {curve}"]
        loss = f"loss {losses[-1]:.4f}" if losses else ""
        done = ["trained before" if note else "finished", loss, counted(len(losses), "step"), name]
        of_expert = () if self.card.expert is None else (published[-1][0],)
        values = (name, str(path), host.lora_model(path), loss_map(losses), value, *of_expert)
        return Result(
            values,
            text="\n".join(lines),
            line=" · ".join(filter(None, done)),
            files=tuple(path for _, path, _ in published),
            page_data={"musubi_job": [{"id": Path(job).name}]},
        )

    async def _train(self, host: Host, run: Run, key: str, task: Task, begin: training_start.Start) -> str:
        """Run the trainer to its end; returns its job folder. key: what its result is noted under."""
        training, state, note = task.training, begin.state, begin.note
        assert training is not None
        if AUTO in training.resume:
            found, problems = await asyncio.to_thread(run.state_to_continue, training.lengths)
            if found is not None:
                state, note = found, training_start.continuing(found, problems)
            elif problems:
                note = "".join(f"{problem}; " for problem in problems) + "no state is whole, so it begins anew"
            host.warnings += [note] if problems else []
        folder = JobFolder.create(host.home, task.tool)
        host.show_job(folder.id)

        def ended(job: Job) -> None:
            if not task.machines.rank:
                _note(host, run, key, job)

        job = await run_training(host, folder, task, state.folder if state else None, note, ended)
        missing = [str(lora) for lora in run.loras if not lora.is_file() and not task.machines.rank]
        if missing:
            raise UserError(f"{task.tool} ended without writing {' and '.join(missing)}. The whole log: {job.folder.log}")
        return str(job.folder.path)

    def _precision(self, values: dict[str, Any]) -> str:
        """`--mixed_precision` in words that accelerate and musubi-tuner know."""
        precision: str = values.get("mixed_precision", "no")
        return followed(stored_precision(values["dit"], self.card)) if precision == "auto" else precision


def lora_trainer(card: Card, family: FamilyNodes) -> type[LoRATrainer]:
    """The node of a family."""
    return type(f"{card.node_name}LoRATrainer", (LoRATrainer,), {"card": card, "spec": _spec(card, family)})


def _acting(tool: str, values: dict[str, Any]) -> dict[str, Any]:
    """Without what has no effect beside the other settings, where its widget is as it comes: nobody asked for it, so nothing is to be said
    of it."""
    named = find_tool(tool)
    args = Namespace(**{option.name: default_of(option) for option in named.options} | values)
    idle = {need.setting.partition("=")[0] for need, _ in unmet(named, args) if not need.rejected}
    return {name: value for name, value in values.items() if name not in idle or value != _USUAL.get(name)}


_USUAL = {
    entry.option or entry.name: entry.default
    for node in (LoRATrainingConfig, OptimizerConfig, SamplingConfig)
    for entry in node.spec.inputs
}
"""The settings of a training as their widgets come."""


def _note(host: Host, run: Run, key: str, ended: Job) -> None:
    """Note what a job leaves, also when it was stopped: it may have finished all the same. Where that cannot be, it is said."""
    try:
        run.add_losses(ended.progress.losses)
        if ended.returncode == 0 and all(lora.is_file() for lora in run.loras):
            run.finish(key, str(ended.folder.path), ended.progress.warnings)
    except OSError as error:
        host.warnings.append(f"{run.name} is not kept for later: {in_words(error)}")


def _check_match(inputs: dict[str, Any], card: Card) -> None:
    latents, text = inputs["latents"], inputs["text"]
    if latents["dataset"]["toml"] != text["dataset"]["toml"]:
        raise UserError("latents and text come from different datasets; connect both caching nodes to the same Dataset Config")
    for socket in ("latents", "text"):
        made_for = inputs[socket].get("caches", inputs[socket]["architecture"])
        if made_for != card.cache_id:
            raise UserError(f"{socket} was cached for {made_for}, the models are {card.title} ({card.cache_id}); cache with these models")
