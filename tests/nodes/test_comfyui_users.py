"""Two users of one ComfyUI (`--multi-user`) with two languages: each reads what is theirs, and nothing of the other's nodes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from .test_comfyui import ROOT, Outcome, Server, running

pytestmark = pytest.mark.comfyui
FOLDERS = {"ja": "", "zh": "runs"}  # another one for each, or ComfyUI would give the second what the first was told
SAID = {"ja": "ここでは動いていません", "zh": "此处没有运行"}


async def _users(server: Server) -> None:
    import aiohttp

    async with aiohttp.ClientSession(server.url) as http:
        names = {}
        for language in SAID:
            async with http.post("/users", json={"username": language}) as answer:
                names[language] = await answer.json()
            await http.post("/settings", json={"Comfy.Locale": language}, headers={"comfy-user": names[language]})
        pages = {language: await http.ws_connect(f"/ws?clientId={language}") for language in SAID}
        heard: dict[str, Outcome] = {language: Outcome() for language in SAID}
        for language, page in pages.items():
            for folder in ("/etc", FOLDERS[language]):
                inputs = {"training": "all", "folder": folder, "action": "stop"}
                sent = {"prompt": {"1": {"class_type": "MusubiTuner_TensorBoard", "inputs": inputs}}, "client_id": language}
                async with http.post("/prompt", json=sent, headers={"comfy-user": names[language]}) as answer:
                    said = json.dumps(await answer.json(), ensure_ascii=False)
                    assert (answer.status == 200) == (folder != "/etc"), said
                    assert answer.status == 200 or ("フォルダー" if language == "ja" else "文件夹") in said
            while not heard[language].kind:
                server._take(await asyncio.wait_for(page.receive(), 60), heard[language])
        for language, page in pages.items():  # what has come meanwhile
            await page.close()
            while (left := await page.receive()).type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                server._take(left, heard[language])
    for language, outcome in heard.items():
        assert outcome.kind == "success", outcome.error
        assert [SAID[language] in text for _, text in outcome.texts] == [True], outcome.texts


def test_each_user_is_told_in_their_language_what_is_theirs(comfyui_path: Path, comfyui_python: Path, tmp_path: Path) -> None:
    (tmp_path / "our home" / "runs").mkdir(parents=True)
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "pack").symlink_to(ROOT, target_is_directory=True)
    with running(comfyui_path, comfyui_python, tmp_path, "--multi-user") as server:
        asyncio.run(_users(server))
