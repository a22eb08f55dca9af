"""The routes of `docs/monitor.md`. Handlers read the request and answer; what they answer comes from the other files here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...backend.musubi_backend.errors import UserError
from .. import tensorboard
from ..answers import ROOT, NotThere, Routes
from ..jobs import config as configuration
from ..jobs.folder import JOBS, RUNS, JobFolder
from ..jobs.index import Index, index_of
from ..spec import Host
from . import control, details, kept_workflows, listing, storage, workflow_samples
from .workflow_samples import pending_of

_NO_SNIFFING = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}


def add_routes(table: Any, host: Callable[[], Host]) -> None:
    """Register the routes in aiohttp's table. host: gives the host of a request."""
    routes = Routes(table)

    def get(path: str, work: Callable[[Any, Index, Host], dict[str, Any]]) -> None:
        def asked(request: Any) -> dict[str, Any]:
            here = host()
            return work(request, index_of(here.home), here)

        routes.get(path, asked)

    def post(path: str, work: Callable[[Any, Index, dict[str, Any]], dict[str, Any]], *, from_a_page: bool = False) -> None:
        routes.post(path, lambda request, values: work(request, index_of(host().home), values), from_a_page=from_a_page)

    async def tensor_board(request: Any, values: dict[str, Any]) -> dict[str, Any]:
        home = host().home
        logs = await asyncio.to_thread(_logs, index_of(home), request.match_info["id"])
        server = await tensorboard.server_of(home, logs, lambda text: None)
        return {"address": server.progress.address}

    async def publish(request: Any, values: dict[str, Any]) -> dict[str, Any]:
        here = host()
        job = await asyncio.to_thread(control.summary, index_of(here.home), request.match_info["id"])
        return await workflow_samples.publish(here, job, values.get("step"))

    get("jobs", _jobs)
    get("jobs/{id}", _detail)
    get("jobs/{id}/series", lambda request, index, host: control.series(index, request.match_info["id"], request.query))
    get("jobs/{id}/log", _log)
    get("jobs/{id}/workflow", _workflow)
    get("jobs/{id}/checkpoints", lambda request, index, host: workflow_samples.offered(host, _job(request, index)))
    get("sampling_workflows", lambda request, index, host: {"names": kept_workflows.names(index.home)})
    get("sampling_workflows/{name}", lambda request, index, host: kept_workflows.read(index.home, request.match_info["name"]))
    get("storage", lambda request, index, host: storage.overview(index))
    post("jobs/{id}/request", lambda request, index, values: {"job": control.ask(index, request.match_info["id"], values.get("name"))})
    post("jobs/{id}/continue", lambda request, index, values: _go_on(request, index, values, host()))
    post("queue", _reorder)
    post("clean", _clean)
    post("queue_settings", lambda request, index, values: {"settings": configuration.set_queue(index.home, values)}, from_a_page=True)
    post("jobs/{id}/workflow_samples", lambda request, index, values: pending_of(index.home).add(_job(request, index), values))
    post(
        "jobs/{id}/workflow_samples/{sample}/refused",
        lambda request, index, values: pending_of(index.home).refused(_job(request, index), request.match_info["sample"]),
    )
    routes.post("jobs/{id}/checkpoints", publish)
    routes.post("jobs/{id}/tensorboard", tensor_board, from_a_page=True)
    routes.post("sampling_workflows/{name}", lambda request, values: _keep(host().home, request, values), most=kept_workflows.LARGEST)
    _add_files(table, workflow_samples.ROUTE, host, _sample_file)
    _add_files(table, "jobs/{id}/file/{number}", host, _file)


def _add_files(table: Any, path: str, host: Callable[[], Host], find: Callable[[Any, Index, Host], details.Served | None]) -> None:
    """A route that gives out what `find` names, and 404 for None."""
    from aiohttp import web

    @table.get(f"{ROOT}/{path}")
    async def file(request: Any) -> Any:
        here = host()
        try:
            found = await asyncio.to_thread(find, request, index_of(here.home), here)
        except UserError as error:  # damaged settings: nobody knows what may be shown
            return web.json_response({"error": str(error)}, status=400)
        if found is None:
            return web.json_response({"error": "there is no such file (any more), or it is not one to be shown"}, status=404)
        path, kind, download = found
        headers = {**_NO_SNIFFING, "Content-Type": kind}
        if download:
            headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{_quoted(path.name)}"
        return web.FileResponse(path, headers=headers)


def _jobs(request: Any, index: Index, host: Host) -> dict[str, Any]:
    return {
        **listing.listed(index, request.query),
        "queue": control.state_of_queue(index.home),
        "settings": configuration.load(index.home).queue,
    }


def _detail(request: Any, index: Index, host: Host) -> dict[str, Any]:
    job = _job(request, index)
    return {
        **details.detail(index, job, host.allowed_roots()),
        "workflow_samples": workflow_samples.listed(index.home, job["run"], job["id"]),
    }


def _job(request: Any, index: Index) -> dict[str, Any]:
    return control.summary(index, request.match_info["id"])


def _keep(home: Path, request: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {"names": kept_workflows.keep(home, request.match_info["name"], values.get("prompt"), values.get("workflow"))}


def _log(request: Any, index: Index, host: Host) -> dict[str, Any]:
    job = _job(request, index)
    log = JobFolder(index.home / JOBS / job["id"]).log
    after, word = request.query.get("after"), request.query.get("find")
    if word:
        return details.found(log, word[:200])
    if after is None:
        return details.tail(log)
    if not after.isascii() or not after.isdecimal() or len(after) > 15:
        raise UserError("after is what the answer before has as next")
    return details.after(log, int(after))


def _workflow(request: Any, index: Index, host: Host) -> dict[str, Any]:
    job = _job(request, index)
    found = details.workflow(JobFolder(index.home / JOBS / job["id"]))
    if found is None:
        raise NotThere("the workflow of this job is not known")
    return found


def _file(request: Any, index: Index, host: Host) -> details.Served | None:
    number = request.match_info["number"]
    try:
        job = _job(request, index)
    except NotThere:
        return None
    if not number.isascii() or not number.isdecimal() or len(number) > 6:
        return None
    return details.served(index.history(job["id"]), int(number), host.allowed_roots())


def _sample_file(request: Any, index: Index, host: Host) -> details.Served | None:
    try:
        run = _job(request, index)["run"]
    except NotThere:
        return None
    return workflow_samples.served(index.home, run, request.match_info["sample"], request.match_info["number"])


def _logs(index: Index, job: str) -> Path:
    """The folder of a training's run, in which there are logs for TensorBoard. UserError where there are none."""
    run = control.summary(index, job)["run"]
    folder = index.home / RUNS / str(run)
    if not run or not any(folder.rglob("events.out.tfevents*")):
        raise UserError("there are no logs for TensorBoard of this job (yet)")
    return folder


def _go_on(request: Any, index: Index, values: dict[str, Any], host: Host) -> dict[str, Any]:
    return {"job": control.go_on(index, request.match_info["id"], values.get("steps"), values.get("epochs"), host.gpus())}


def _reorder(request: Any, index: Index, values: dict[str, Any]) -> dict[str, Any]:
    control.reorder(index, values.get("order"))
    return {"queue": control.state_of_queue(index.home)}


def _clean(request: Any, index: Index, values: dict[str, Any]) -> dict[str, Any]:
    jobs, runs = storage.named_jobs(values.get("jobs", []), "jobs"), storage.named_runs(values.get("runs", []))
    return storage.clean(index, jobs, runs, states_only=values.get("states_only") is True)


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="", errors="replace")
