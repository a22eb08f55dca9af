"""Web routes of the pack: reading a page of a dataset, and saving a caption.

    GET  /musubi_tuner/dataset_view/<id>   the items of a page, as `views.for_the_page`
    POST /musubi_tuner/caption             {"view", "number", "before", "caption"} -> {"caption"}

What changes something takes POST with JSON from our own page only: browsers send forms, but no JSON, to other sites unasked, and say
where a request comes from. Errors are {"error": text}, with status 400; 409, when the caption was changed elsewhere, also holds "current".
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from ..backend.musubi_backend.errors import UserError
from . import views
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
            values = await _json(request)
            wanted = [values.get(name) for name in ("view", "number", "before", "caption")]
            return web.json_response({"caption": await asyncio.to_thread(views.save_caption, host(), *wanted)})
        except views.Changed as changed:
            return web.json_response({"error": str(changed), "current": changed.current}, status=409)
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)
        except OSError as error:
            reason = "there is no space left on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)
            return web.json_response({"error": f"the caption was not saved: {reason}"}, status=500)


def not_ours(headers: Any, host: str) -> str:
    """Why a request that changes something is refused, or "" when it is JSON from our own page (or from no page at all)."""
    if headers.get("Content-Type", "").split(";")[0].strip().lower() != "application/json":
        return "send JSON, with Content-Type: application/json"
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    same_host = origin is None or urlsplit(origin).netloc.lower() == host.lower()
    # what the browser itself says counts more: behind a proxy the host has another name
    ours = same_host if site is None else site in ("same-origin", "none")
    return "" if ours else "this request comes from another site"


async def _json(request: Any) -> dict[str, Any]:
    if (request.content_length or 0) > LARGEST_REQUEST:
        raise UserError("this is too much for a caption")
    try:
        values = json.loads(await request.text())
    except ValueError as error:
        raise UserError(f"this is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError("this is not a JSON object")
    return values
