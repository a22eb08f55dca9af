"""Which language the person behind a prompt reads: that of ComfyUI's settings, else of the browser that queued it.

ComfyUI knows the user of a request only (its settings are the user's, of which there may be several), and a node that runs knows the client
whose prompt it belongs to. So a request's language is kept while it is answered, for what validation says, and with its client.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.documents import read_json
from .translations import ENGLISH, known

_SETTINGS, _LOCALE = "comfy.settings.json", "Comfy.Locale"
_MOST_CLIENTS = 1000
_PROMPTS = ("/prompt", "/api/prompt")

_asking: ContextVar[str] = ContextVar("language of the request that is answered", default=ENGLISH)
_of_client: dict[str, str] = {}


def of_request() -> str:
    """Of the request that is being answered."""
    return _asking.get()


def of_client(client: str | None) -> str:
    """Of whoever queued the prompt that runs. client: `PromptServer.client_id`."""
    return _of_client.get(client or "", ENGLISH)


def follow(server: Any) -> None:
    """Look at the requests of ComfyUI's `PromptServer` that queue a prompt; before it begins to serve."""
    from aiohttp import web

    @web.middleware
    async def language(request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        if request.method == "POST" and request.path in _PROMPTS:
            _asking.set(_language_of(server.user_manager, request))
        return await handler(request)

    def remember(prompt: dict[str, Any]) -> dict[str, Any]:
        client = prompt.get("client_id")
        if isinstance(client, str):
            _of_client.pop(client, None)
            _of_client[client] = _asking.get()
            while len(_of_client) > _MOST_CLIENTS:
                del _of_client[next(iter(_of_client))]
        return prompt

    server.app.middlewares.append(language)
    server.add_on_prompt_handler(remember)


def _language_of(users: Any, request: Any) -> str:
    chosen = request.headers.get("Accept-Language", "")  # what the page goes by where nothing is set
    try:
        settings = read_json(Path(users.get_request_user_filepath(request, _SETTINGS, create_dir=False)), dict)
        chosen = settings.get(_LOCALE) or chosen
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no such user, no settings yet, or damaged ones
        pass
    return known(str(chosen))
