"""How the routes of the pack take requests and answer them.

What changes something takes POST with JSON from our own page only: browsers send forms, but no JSON, to other sites unasked, and say
where a request comes from. A page whose name was made to mean this machine (DNS rebinding) is recognised by the Host it asks for. An
answer is JSON; errors are {"error": text}, with status 400 unless the error says another one.
"""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import math
import socket
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from urllib.parse import SplitResult, urlsplit

from ..backend.musubi_backend.documents import parse_json
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.place import reason

ROOT = "/musubi_tuner"
LARGEST_REQUEST = 200_000
"""Bytes; a route may take more."""

Work = Callable[..., Any]


class Rejected(UserError):
    """An error with a status of its own, and what the answer has besides its text."""

    status: ClassVar[int] = 400

    def __init__(self, text: str, more: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.more = dict(more or {})


class NotThere(Rejected):
    """What was asked for is gone, or never was."""

    status = 404


class Routes:
    """Adds routes to aiohttp's table. Work is a function that runs in a thread, or a coroutine; what it gives is the answer, what it
    rejects one with an error. unsaved: what is said where a file could not be written, which is then the server's fault (500)."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def get(self, path: str, work: Work) -> None:
        """work(request) -> the answer."""

        async def handler(request: Any) -> Any:
            return await _answer("", work, request)

        self._table.get(f"{ROOT}/{path}")(handler)

    def post(self, path: str, work: Work, *, from_a_page: bool = False, unsaved: str = "", most: int = LARGEST_REQUEST) -> None:
        """work(request, the object in its body) -> the answer. from_a_page: never from a script. most: bytes of a body."""

        async def handler(request: Any) -> Any:
            refusal = not_ours(request.headers, request.host, from_a_page=from_a_page)
            if refusal:
                return _json({"error": refusal}, 403)
            try:
                values = await json_of(request, most)
            except UserError as error:
                return _json({"error": str(error)}, 400)
            return await _answer(unsaved, work, request, values)

        self._table.post(f"{ROOT}/{path}")(handler)


async def _answer(unsaved: str, work: Work, *given: Any) -> Any:
    try:
        if inspect.iscoroutinefunction(work):
            values = await work(*given)
            return await asyncio.to_thread(_json, values)
        return await asyncio.to_thread(lambda: _json(work(*given)))
    except Rejected as error:
        return _json({"error": str(error), **error.more}, error.status)
    except UserError as error:
        return _json({"error": str(error)}, 400)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not unsaved:
            return _json({"error": "it was removed meanwhile"}, NotThere.status)
        return _json({"error": f"{unsaved or 'this could not be read or written'}: {reason(error)}"}, 500 if unsaved else 400)


def _json(values: Any, status: int = 200) -> Any:
    from aiohttp import web

    return web.json_response(plain(values), status=status)


def plain(value: Any) -> Any:
    """For JSON: numbers that are none become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


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


async def json_of(request: Any, most: int = LARGEST_REQUEST) -> dict[str, Any]:
    """The object in the body. UserError for anything else, and before more than `most` bytes of it are read."""
    from aiohttp import web

    body = bytearray()
    try:
        async for part in request.content.iter_any():  # a body may come in chunks without saying how long it is
            body += part
            if len(body) > most:
                raise UserError("this is too long")
    except (web.RequestPayloadError, OSError) as error:  # packed in a way that it is not, or whoever sent it has gone
        raise UserError(f"this did not arrive as it was sent: {error}") from None
    try:
        values = parse_json(bytes(body), dict)
    except ValueError as error:
        raise UserError(f"this is not JSON: {error}") from None
    return values
