"""Web routes of the pack: reading a page of a dataset, saving a caption, and the folders that workflows may use.

    GET  /musubi_tuner/dataset_view/<id>   the items of a page, as `views.for_the_page`
    POST /musubi_tuner/caption             {"view", "number", "before", "caption"} -> {"caption"}
    GET  /musubi_tuner/allowed_folders     {"folders": those the user has allowed, "own": those that ComfyUI allows}
    POST /musubi_tuner/allowed_folders     {"folders": [...]} -> {"folders"}
    POST /musubi_tuner/learning_rates      {"values": of the widgets of Optimizer Config, "steps"} -> {"rates": [[step, rate], ...], "note"}
    GET  /musubi_tuner/backend             {"home", "engine", "installed", "command": what installs it, to be typed on a terminal,
                                            "other_engine": what switches to the engine that is there too, else null}

What changes something takes POST with JSON from our own page only: browsers send forms, but no JSON, to other sites unasked, and say
where a request comes from. A page whose name was made to mean this machine (DNS rebinding) is recognised by the Host it asks for. Errors
are {"error": text}, with status 400; 409, when the caption was changed elsewhere, also holds "current".
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ..backend.musubi_backend.documents import parse_json
from ..backend.musubi_backend.errors import UserError
from ..installer.settings_rules import ENGINES
from . import optimizer_settings, views
from .jobs import config as configuration
from .spec import Host

LARGEST_REQUEST = 200_000


def add_routes(routes: Any, host: Callable[[], Host]) -> None:
    """Register the routes in aiohttp's table `routes`. host: gives the host of a request."""
    from aiohttp import web

    @routes.get("/musubi_tuner/dataset_view/{id}")
    async def dataset_view(request: Any) -> Any:
        try:
            return web.json_response(await asyncio.to_thread(views.for_the_page, host(), request.match_info["id"]))
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)

    @routes.post("/musubi_tuner/caption")
    async def caption(request: Any) -> Any:
        refusal = not_ours(request.headers, request.host)
        if refusal:
            return web.json_response({"error": refusal}, status=403)
        try:
            values = await json_of(request)
            wanted = [values.get(name) for name in ("view", "number", "before", "caption")]
            return web.json_response({"caption": await asyncio.to_thread(views.save_caption, host(), *wanted)})
        except views.Changed as changed:
            return web.json_response({"error": str(changed), "current": changed.current}, status=409)
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)
        except OSError as error:
            return web.json_response({"error": f"the caption was not saved: {_reason(error)}"}, status=500)

    @routes.get("/musubi_tuner/allowed_folders")
    async def allowed_folders(request: Any) -> Any:
        try:
            here = host()
            folders = configuration.load(here.home).allowed_roots
            own = [str(root) for root in here.allowed_roots() if root not in folders]
            return web.json_response({"folders": [str(root) for root in folders], "own": own})
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)

    @routes.post("/musubi_tuner/learning_rates")
    async def learning_rates(request: Any) -> Any:
        refusal = not_ours(request.headers, request.host)
        if refusal:
            return web.json_response({"error": refusal}, status=403)
        try:
            given = await json_of(request)
            return web.json_response(await asyncio.to_thread(optimizer_settings.schedule, host(), given.get("values"), given.get("steps")))
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)

    @routes.get("/musubi_tuner/backend")
    async def backend(request: Any) -> Any:
        try:
            settings = configuration.load(host().home)
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)
        installed = settings.interpreter is not None and settings.interpreter.is_file()
        command = f'"{sys.executable}" "{configuration.PACK_ROOT / "install.py"}"'
        other = next(engine for engine in ENGINES if engine != settings.engine)
        return web.json_response(
            {
                "home": str(settings.home),
                "engine": settings.engine,
                "installed": installed,
                "command": command,
                "other_engine": f"{command} --engine {other}" if settings.musubi_path else None,
            }
        )

    @routes.post("/musubi_tuner/allowed_folders")
    async def allow_folders(request: Any) -> Any:
        refusal = not_ours(request.headers, request.host, from_a_page=True)
        if refusal:
            return web.json_response({"error": refusal}, status=403)
        try:
            folders = (await json_of(request)).get("folders")
            allowed = await asyncio.to_thread(configuration.allow_folders, host().home, folders)
            return web.json_response({"folders": [str(root) for root in allowed]})
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)
        except OSError as error:
            return web.json_response({"error": f"the folders were not saved: {_reason(error)}"}, status=500)


def not_ours(headers: Any, host: str, *, from_a_page: bool = False) -> str:
    """Why a request that changes something is rejected, or "" when it is JSON from our own page, or from no page at all unless
    `from_a_page`."""
    if headers.get("Content-Type", "").split(";")[0].strip().lower() != "application/json":
        return "send JSON, with Content-Type: application/json"
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    same_host = origin is None or _parts(origin).netloc.lower() == host.lower()
    # what the browser itself says counts more: behind a proxy the host has another name
    ours = same_host if site is None else site in ("same-origin", "none")
    if not ours:
        return "this request comes from another site"
    if from_a_page and site != "same-origin" and origin is None:
        return "this is changed in ComfyUI's page only"
    if not _is_this_server(host, origin):
        return f"{host} is no address of this server: open ComfyUI by its IP address, as localhost, or through https"
    return ""


def _is_this_server(host: str, origin: str | None) -> bool:
    """False for a name that anybody could have made to mean this machine. A page that came through https has shown whose name it is."""
    name = (_parts(f"//{host}").hostname or "").rstrip(".")
    own = socket.gethostname().lower()
    if name in ("localhost", own, f"{own.split('.')[0]}.local") or _parts(origin or "").scheme == "https":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _parts(address: str) -> SplitResult:
    """Of an address that a request names; all empty where it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _reason(error: OSError) -> str:
    return "there is no space left on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)


async def json_of(request: Any) -> dict[str, Any]:
    """The object in the body. UserError for anything else, and before more than `LARGEST_REQUEST` bytes of it are read."""
    body = bytearray()
    async for part in request.content.iter_any():  # a body may come in chunks without saying how long it is
        body += part
        if len(body) > LARGEST_REQUEST:
            raise UserError("this is too long")
    try:
        values = parse_json(bytes(body), dict)
    except ValueError as error:
        raise UserError(f"this is not JSON: {error}") from None
    return values
