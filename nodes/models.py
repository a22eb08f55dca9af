"""Pickers for model files, one node per family. A wrong file is recognised by its keys and rejected by name."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar

from ..backend.musubi_backend import content
from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.architectures.card import IMAGE_ENCODER, Card, Part
from ..backend.musubi_backend.architectures.precision import stored_precision
from ..backend.musubi_backend.architectures.widgets import FamilyNodes
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.registry import options_for
from ..backend.musubi_backend.weights.recognise import PICKLE_SUFFIXES, expect
from .families import families, own_input
from .spec import Host, Input, Node, NodeSpec, Output, Problem, Result, refused
from .split_models import all_files, first_file
from .widgets import NONE, folder

MODELS = "MUSUBITUNER_MODELS"


def _picker(part: Part) -> Input:
    where = f"{part.what}, for example {part.example} (in models/{part.folder})."
    if not part.only_for:
        return folder(part.name, part.folder, where)
    return folder(part.name, part.folder, f"{where} Only for {part.only_for}.", empty=NONE, tasks=part.tasks)


def _spec(card: Card, family: FamilyNodes) -> NodeSpec:
    variant = (own_input(family.variant),) if family.variant else ()
    return NodeSpec(
        id=f"MusubiTuner_{card.node_name}ModelPaths",
        display_name=f"{card.family} Model Paths",
        category="MusubiTuner/Models",
        description=f"Choose the files of a {card.family} model from ComfyUI's model folders. A file of another model is recognised and "
        "rejected.",
        inputs=(*variant, *map(_picker, card.parts)),
        outputs=(Output("models", MODELS, "The files, for caching, training and generating"),),
    )


class ModelPaths(Node):
    """The picker of a family's files; `model_paths` makes one of a family."""

    card: ClassVar[Card]
    family: ClassVar[FamilyNodes]

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        task = self.task_of(constants)
        if task is None:
            return
        files = self._files(host, constants)
        transformers = {part.name: files[part.name] for part in self.card.transformers if part.name in files}
        readable = {part: path for part, path in transformers.items() if path.suffix.lower() not in PICKLE_SUFFIXES}
        wrong = [problem for part, path in readable.items() for problem in refused(part, self._check_transformer, part, path, task)]
        if not wrong and self.card.expert is not None:
            wrong = list(refused(self.card.expert.name, _check_same_format, self.card, readable.values()))
        yield from wrong
        for part in self.card.parts:
            if self._looks_at_the_start(part, task) and constants.get(part.name) == NONE:
                encoder = part.what[0].lower() + part.what[1:]
                text = f"{part.name}: {task} looks at the first frame through {encoder}; choose its file, {part.example}"
                yield Problem(part.name, text)

    def fingerprint(self, host: Host, **constants: Any) -> str:
        return content.of_files(all_files(self._files(host, constants).values()))

    async def run(self, host: Host, **inputs: Any) -> Result:
        files = self._files(host, inputs)
        kinds = await asyncio.to_thread(_recognise, self.card.at(self.task_of(inputs)), files)
        facts = self.family.facts_of(inputs, files)
        paths = {part: str(first_file(path)) for part, path in files.items()}
        value = {"architecture": self.card.id, "task": self.task_of(inputs), **facts, **paths}
        return Result((value,), text="; ".join(kinds))

    def task_of(self, values: dict[str, Any]) -> str | None:
        """The chosen task; the only one where there is no choice; None where it comes over a link and is not known yet."""
        variant, tasks = self.family.variant, self.card.tasks
        chosen_here = variant is not None and variant.choices == tuple(task.name for task in tasks)
        return values.get(variant.name) if variant and chosen_here else tasks[0].name

    def _files(self, host: Host, values: dict[str, Any]) -> dict[str, Path]:
        """The chosen files that the task uses, by part."""
        task = self.task_of(values)
        used = [part for part in self.card.parts if task is None or not part.tasks or task in part.tasks]
        names = {part: values.get(part.name, NONE) for part in used}
        return {part.name: host.model_path(part.folder, name) for part, name in names.items() if name and name != NONE}

    def _looks_at_the_start(self, part: Part, task: str) -> bool:
        return part.role == IMAGE_ENCODER and task in part.tasks and self.card.task(task).start_image

    def _check_transformer(self, name: str, path: Path, task: str) -> None:
        """UserError for a file of another kind or task. Reads the header."""
        expect(path, self.card.at(task).part(name).kinds[0], name)
        try:
            self.family.check_transformer(path, task)
        except UserError as error:
            raise UserError(f"{name}: {path.name}: {str(error).replace('--task', 'task')}") from None


def model_paths(card: Card, family: FamilyNodes) -> type[ModelPaths]:
    """The node of a family."""
    return type(f"{card.node_name}ModelPaths", (ModelPaths,), {"card": card, "family": family, "spec": _spec(card, family)})


def _check_same_format(card: Card, transformers: Collection[Path]) -> None:
    """UserError for two experts of different dtypes. Reads headers."""
    assert card.expert is not None
    formats = {path.name: stored_precision(path, card) for path in transformers}
    if len(set(formats.values())) > 1:
        named = " and ".join(f"{name} ({stored})" for name, stored in formats.items())
        raise UserError(f"{card.expert.name}: {named} have different dtypes; choose two files of the same")


def _recognise(card: Card, paths: dict[str, Path]) -> list[str]:
    return [str(expect(path, card.part(part).kinds[0], part)) for part, path in paths.items()]


def card_of(models: dict[str, Any]) -> Card:
    """The card of a MODELS value, as its task has it."""
    return cards()[models["architecture"]].at(models.get("task"))


def model_values(card: Card, models: dict[str, Any], tool: str) -> dict[str, Any]:
    """option name -> value of what a MODELS value says, as far as `tool` takes it."""
    known = options_for(tool)
    said = {**models, card.task_option: models.get("task")}
    names = (card.task_option, *facts_of(card), *(part.name for part in card.parts))
    return {name: said[name] for name in names if name in known and name in said}


def facts_of(card: Card) -> tuple[str, ...]:
    """The options that a MODELS value of this architecture may hold besides task and files."""
    return next((family.facts for one, family in families() if one.id == card.id), ())


def check_architecture(card: Card, models: dict[str, Any], node: str) -> None:
    """UserError where models of another architecture are connected."""
    if models["architecture"] != card.id:
        other = cards()[models["architecture"]].title
        what = f"{card.title} {card.makes.lower()}s"
        raise UserError(f"{node} makes {what}, but the models are {other}: use {other}'s own node, or connect other models")


def files_for(models: dict[str, Any], parts: tuple[str, ...], what: str) -> dict[str, str]:
    """The named files of a MODELS value. UserError names the one that was not chosen."""
    missing = [part for part in parts if part not in models]
    if missing:
        raise UserError(f"{what} needs {', '.join(missing)}: choose it in {card_of(models).family} Model Paths")
    return {part: models[part] for part in parts}
