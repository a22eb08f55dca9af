"""What a training begins with: nothing, the state of another training, or the weights of a LoRA."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..backend.musubi_backend import content
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.option import TRAIN
from ..backend.musubi_backend.training import saved_states
from .families import any_tool, shared_widget
from .jobs import guard
from .jobs.wording import in_widgets
from .runs import JOB
from .spec import Host, Input
from .widgets import NONE, folder

HERE, BACKGROUND = "here", "in the background"
INPUTS = (
    shared_widget(TRAIN, "dim_from_weights", option="", advanced=True),
    folder("network_weights", "loras", "A LoRA to begin with: its weights, but not its optimizer or its count of steps. To continue a "
           "training, use continue_from.", empty=NONE, advanced=True),
    Input("continue_state", "STRING", "Continue from this state: a folder whose name ends in -state, or the newest in a folder of them. "
          "Steps count from the start of that training. Empty: none.", default="", advanced=True),
    shared_widget(TRAIN, "resume_learning_rate", off=0.0, option="", tooltip="With continue_from or continue_state: continue with this "
           "learning rate; the schedule keeps its shape. 0: the rate of the state."),
    Input("continue_from", JOB, "From another trainer: continue from its newest state instead of from step 0. Steps count from the start "
          "of that training, so set more than it had.", optional=True),
    Input("run", "COMBO", "here: this node waits for the LoRA, and gives it to the next node. in the background: the training "
          "is queued, continues when ComfyUI is closed or crashes, and nothing behind this node runs until you run the workflow again when "
          "it is trained.",
          default=HERE, choices=(HERE, BACKGROUND), optional=True),
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """values: options it comes to, without `resume`; state: to continue from; stamp: what tells it from other beginnings."""

    values: dict[str, Any] = field(default_factory=dict)
    state: saved_states.SavedState | None = None
    stamp: tuple[Any, ...] = ()
    note: str = ""


def state_folder(host: Host, text: str) -> Path:
    """The folder `continue_state` names. UserError when it is not there or not allowed."""
    path = guard.inside(text, host.allowed_roots(), "continue_state", relative_to=(host.home,))
    if not path.is_dir():
        raise UserError(f"continue_state: {path} is not a folder")
    return path


def of(host: Host, inputs: dict[str, Any]) -> Start:
    """What the trainer's inputs say. UserError for what does not go together, and where there is no whole state. Reads the state."""
    check(inputs)
    values: dict[str, Any] = {}
    stamp: list[Any] = []
    if inputs["network_weights"] != NONE:
        file = host.model_path("loras", inputs["network_weights"])
        values |= {"network_weights": str(file), "dim_from_weights": inputs["dim_from_weights"]}
        stamp.append(content.stamp(file))
    rate = inputs["resume_learning_rate"]
    if not inputs["continue_from"] and not inputs["continue_state"]:
        return Start(values, None, tuple(stamp))
    saved, note = _newest(Path(inputs["continue_from"]["run"])) if inputs["continue_from"] else _named(host, inputs["continue_state"])
    if rate:
        values["resume_learning_rate"] = rate
    stamp += [saved.facts.get("run") or content.stamp(saved.folder / saved_states.MODEL_FILE), saved.step]
    return Start(values, saved, tuple(stamp), note)


def check(inputs: dict[str, Any]) -> None:
    """UserError for what does not go together."""
    if inputs["dim_from_weights"] and inputs["network_weights"] == NONE:
        raise UserError("dim_from_weights needs a LoRA to take the rank from: choose network_weights, or turn it off")
    if inputs["continue_from"] and inputs["continue_state"]:
        raise UserError("continue_from and continue_state exclude each other: use one")
    if inputs["resume_learning_rate"] and not inputs["continue_from"] and not inputs["continue_state"]:
        raise UserError("resume_learning_rate is for continuing a training: connect continue_from, enter continue_state, or set it to 0")


def continuing(saved: saved_states.SavedState, problems: list[str]) -> str:
    """What a node says of the state it continues from."""
    damaged = "".join(f"{problem}; the one before it is used. " for problem in problems)
    return f"{damaged}continuing from {saved.folder.name}, step {saved.step}"


def _named(host: Host, text: str) -> tuple[saved_states.SavedState, str]:
    path = state_folder(host, text)
    if not path.name.endswith(saved_states.STATE_SUFFIX):
        return _newest(path)
    try:
        saved = saved_states.read(path, whole=True)
    except UserError as error:
        raise UserError(in_widgets(any_tool(TRAIN), str(error))) from error
    return saved, continuing(saved, [])


def _newest(path: Path) -> tuple[saved_states.SavedState, str]:
    """The furthest whole state in a folder of one training."""
    names = sorted({saved_states.run_name(one) for one in path.glob(f"*{saved_states.STATE_SUFFIX}")})
    if len(names) > 1:
        raise UserError(f"{path} holds states of several trainings: {', '.join(names)}. Name one state in continue_state")
    saved, problems = saved_states.furthest_whole(saved_states.of_run(path, names[0])) if names else (None, [])
    if saved is None:
        raise UserError(
            "\n".join([*problems, f"{path} holds no state to continue from: turn on save_state in LoRA Training Config of that training"])
        )
    return saved, continuing(saved, problems)
