"""TensorBoard and Weights & Biases logs under musubi-tuner's tags.

Their packages take seconds to import, so a thread imports them and writes, while training continues.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .settings import LoggingSettings

logger = logging.getLogger(__name__)

_PRIVATE = (
    "wandb_api_key", "huggingface_token", "dit", "vae", "t5", "clip", "base_weights", "network_weights", "output_dir", "logging_dir",
)  # fmt: skip


_NAME = "network_train"
_INSTALL = {"tensorboard": "install.py", "wandb": "install.py --with wandb"}


class Trackers:
    """Sends scalars to the chosen trackers. Without `--logging_dir` and `--log_with` it does nothing."""

    def __init__(self, settings: LoggingSettings, values: Mapping[str, Any], active: bool = True) -> None:
        """Checks that what was chosen is there (UserError); imports nothing yet.

        values: of all options, for `--log_config`; active: False in all processes but the main one.
        """
        self._settings = settings
        self._values = values
        self._kinds = chosen(settings) if active else ()
        self._folder = log_folder(settings)
        self._queue: queue.SimpleQueue[tuple[Mapping[str, float], int] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record scalars at a step. Returns at once."""
        if not self._kinds:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
            self._thread.start()
        self._queue.put((dict(values), step))

    def close(self) -> None:
        """Write what is queued and end. Waits for the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        try:
            backends = [_MAKERS[kind](self._settings, self._folder, self._values) for kind in self._kinds]
            while (entry := self._queue.get()) is not None:
                for backend in backends:
                    backend.write(*entry)
            for backend in backends:
                backend.close()
        except Exception:  # a full disk or a lost connection must not end the training
            logger.exception("logging to %s stopped; training continues", " and ".join(self._kinds))
            self._kinds = ()  # nobody empties the queue any more


def chosen(settings: LoggingSettings) -> tuple[str, ...]:
    """The trackers that `--log_with` and `--logging_dir` ask for. UserError when one is not installed or has no folder."""
    if settings.log_with is None:
        kinds: tuple[str, ...] = ("tensorboard",) if settings.logging_dir else ()
    else:
        kinds = ("tensorboard", "wandb") if settings.log_with == "all" else (settings.log_with,)
    if "tensorboard" in kinds and not settings.logging_dir:
        raise UserError(f"--log_with {settings.log_with} needs --logging_dir")
    for kind in kinds:
        if importlib.util.find_spec(kind) is None:
            raise UserError(
                f"--log_with: logging to {kind} needs the package {kind}, which is not installed in the backend's environment: "
                f"run {_INSTALL[kind]}"
            )
    return kinds


def log_folder(settings: LoggingSettings) -> Path | None:
    """`{logging_dir}/{log_prefix}{time}`, the parent of all logs of a run that begins now; None without `--logging_dir`."""
    if not settings.logging_dir:
        return None
    return Path(settings.logging_dir) / f"{settings.log_prefix or ''}{time.strftime('%Y%m%d%H%M%S')}"


def shareable_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for `--log_config`, without keys and paths of this machine."""
    simple = (bool, int, float, str, type(None))
    return {key: value if isinstance(value, simple) else str(value) for key, value in values.items() if key not in _PRIVATE}


class _TensorBoard:
    def __init__(self, settings: LoggingSettings, folder: Path, values: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / (settings.log_tracker_name or _NAME)))
        if settings.log_config:
            self._writer.add_text("settings", f"```json\n{json.dumps(shareable_settings(values), indent=1)}\n```")

    def write(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """What it sends are the scalars, and settings where `--log_config` asks for it; nothing of the machine, its command line or its code.
    Whether it sends anything at all is the user's own setting (WANDB_MODE)."""

    def __init__(self, settings: LoggingSettings, folder: Path | None, values: Mapping[str, Any]) -> None:
        import wandb

        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        key = {"api_key": settings.wandb_api_key} if settings.wandb_api_key else {}
        self._run = wandb.init(
            project=settings.log_tracker_name or _NAME,
            name=settings.wandb_run_name,
            dir=folder,
            config=shareable_settings(values) if settings.log_config else None,
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True, x_disable_meta=True, **key),
        )

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


_MAKERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _Wandb}


def step_values(loss: float, average: float, rates: list[float], optimizer: Any, optimizer_type: str, plus_group: bool) -> dict[str, float]:
    """One step's scalars under musubi-tuner's tags. plus_group: the second rate is LoRA+'s."""
    values = {"loss/current": loss, "loss/average": average}
    names = ["unet", "unet plus"] if plus_group else ["unet"] if len(rates) == 1 else [f"group{index}" for index in range(len(rates))]
    kind = optimizer_type.lower()
    for name, rate, group in zip(names, rates, optimizer.param_groups, strict=False):
        values[f"lr/{name}"] = rate
        if ("prodigy" in kind or kind.startswith("dadapt")) and "d" in group:
            values[f"lr/d*lr/{name}"] = group["d"] * group["lr"]
            if "effective_lr" in group:
                values[f"lr/d*eff_lr/{name}"] = group["d"] * group["effective_lr"]
    return values
