"""What ComfyUI's server does for jobs: answers routes, tells pages what changes, starts the keeper, removes old jobs, collects samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ...backend.musubi_backend.errors import UserError
from ..background import submit
from ..jobs import config as configuration
from ..jobs.index import index_of
from ..spec import Host
from . import control, storage
from .messages import EVENT, Messages
from .routes import add_routes
from .workflow_samples import pending_of


def watch(server: Any, host: Callable[[], Host]) -> None:
    """Begin with it. server: ComfyUI's `PromptServer`."""
    add_routes(server.routes, host)
    home = host().home
    index = index_of(home)
    retired = False

    def always() -> None:
        nonlocal retired
        submit.see_to_it(home)
        if not retired:  # once per start of ComfyUI
            retired = True
            with contextlib.suppress(UserError):  # a damaged config.json is said where it is used
                keep = configuration.load(home).queue["keep_jobs"]
                if keep is not None:
                    storage.retire(index, keep)
        here = host()
        changed = pending_of(home).collect(server.prompt_queue, {"output": here.output_dir, "temp": here.temp_dir})
        if changed:
            server.send_sync(EVENT, {"jobs": [job for job in index.jobs() if job["run"] in changed], "removed": []})

    Messages(index, lambda: control.state_of_queue(home), server.send_sync).start(lambda: bool(server.sockets), always=always)
