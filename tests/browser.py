"""Chromium, spoken to in the protocol of its driver (W3C WebDriver: JSON over HTTP)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 240
"""Seconds that a script in the page may take: a busy machine takes more than the driver's own 30 for a large graph."""
KEYS = {"Enter": "\ue007", "Tab": "\ue004", "Escape": "\ue00c", "Left": "\ue012", "Up": "\ue013", "Right": "\ue014", "Down": "\ue015"}


class Browser:
    """One window."""

    def __init__(self, driver: str) -> None:
        self.driver = driver
        arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1400,1000"]
        timeouts = {"script": PATIENCE * 1000}
        capabilities = {"alwaysMatch": {"browserName": "chrome", "timeouts": timeouts, "goog:chromeOptions": {"args": arguments}}}
        self.session = self._call("POST", "/session", {"capabilities": capabilities})["sessionId"]

    def open(self, url: str) -> None:
        self._call("POST", f"/session/{self.session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that an async function of this body gives."""
        body = f"(async (...args) => {{ {script} }})(...arguments)"
        code = f"const done = arguments[arguments.length - 1]; {body}.then(done, e => done('ERROR ' + e));"
        value = self._call("POST", f"/session/{self.session}/execute/async", {"script": code, "args": list(arguments)})
        assert not (isinstance(value, str) and value.startswith("ERROR")), value
        return value

    def wait(self, condition: str, seconds: float = 120) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.run(f"return {condition};")
            if value:
                return value
            time.sleep(0.2)
        raise AssertionError(f"did not come true: {condition}; the page says: {self.run('return document.body.innerText.slice(0, 2000);')}")

    def handle(self) -> str:
        """Of the window that is spoken to."""
        return str(self._call("GET", f"/session/{self.session}/window"))

    def to(self, handle: str) -> None:
        """Speak to this window."""
        self._call("POST", f"/session/{self.session}/window", {"handle": handle})

    def new_window(self) -> None:
        """Open another one of the same browser, and speak to it."""
        self.to(self._call("POST", f"/session/{self.session}/window/new", {"type": "window"})["handle"])

    def downloads(self, folder: Path) -> None:
        """Where files go that are downloaded from now on."""
        self._devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def resize(self, width: int, height: int) -> None:
        self._call("POST", f"/session/{self.session}/window/rect", {"width": width, "height": height})

    def press(self, key: str) -> None:
        """A key that is pressed and let go, for what is focused. Names: `KEYS`, else the character."""
        press = [{"type": kind, "value": KEYS.get(key, key)} for kind in ("keyDown", "keyUp")]
        actions = {"actions": [{"type": "key", "id": "keyboard", "actions": press}]}
        self._call("POST", f"/session/{self.session}/actions", actions)

    def click(self, element: str, seconds: float = 10) -> None:
        """Press the mouse where an element is seen: the value of an expression. AssertionError where it is not, or something covers it, for
        so long: a message of the page may."""
        look = f"""
            const one = {element};
            one.scrollIntoView({{ block: "center" }});
            await new Promise(requestAnimationFrame);
            const {{ x, y, width, height }} = one.getBoundingClientRect();
            const at = [Math.round(x + width / 2), Math.round(y + height / 2)];
            const seen = one.checkVisibility({{ opacityProperty: true, visibilityProperty: true }}) && !one.disabled;
            const top = document.elementFromPoint(...at);
            return [seen && one.contains(top) ? "" : `${{one.outerHTML.slice(0, 200)}} is under ${{top?.outerHTML.slice(0, 200)}}`, ...at];
        """
        end = time.monotonic() + seconds
        while (found := self.run(look))[0] and time.monotonic() < end:
            time.sleep(0.2)
        problem, x, y = found
        assert not problem, problem
        press = [{"type": "pointerMove", "x": x, "y": y}, {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        actions = {"actions": [{"type": "pointer", "id": "mouse", "actions": press}]}
        self._call("POST", f"/session/{self.session}/actions", actions)

    def busy(self) -> float:
        """CPU seconds that the page's main thread has worked since this was asked first."""
        self._devtools("Performance.enable", timeDomain="threadTicks")
        metrics = self._devtools("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))

    def spoken(self) -> list[tuple[str, str]]:
        """What a screen reader finds in the page: role and name of each element that it is told of."""
        nodes = self._devtools("Accessibility.getFullAXTree")["nodes"]
        return [(node["role"]["value"], node.get("name", {}).get("value", "").strip()) for node in nodes if not node["ignored"]]

    def image(self) -> bytes:
        """What is seen, as a PNG."""
        return base64.b64decode(self._call("GET", f"/session/{self.session}/screenshot"))

    def close(self) -> None:
        self._call("DELETE", f"/session/{self.session}")

    def _devtools(self, command: str, **values: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self._call("POST", f"/session/{self.session}/goog/cdp/execute", {"cmd": command, "params": values})

    def _call(self, method: str, path: str, values: dict[str, Any] | None = None) -> Any:
        data = json.dumps(values).encode() if values is not None else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.driver + path, data, headers, method=method)  # noqa: S310  # the driver's own address
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE + 60) as answer:  # noqa: S310
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            error.msg = json.load(error)["value"]["message"]
            raise


@contextmanager
def opened(home: Path) -> Iterator[Browser]:
    """A window of its own, with its profile under `home`. Skips without a browser."""
    driver = shutil.which("chromedriver")
    if driver is None or not shutil.which("chromium"):
        pytest.skip("needs chromium and chromedriver on the PATH")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, env={**os.environ, "HOME": str(home)})
    window = None
    try:
        for _ in range(300):
            try:
                window = Browser(f"http://127.0.0.1:{port}")
                break
            except OSError:
                time.sleep(0.2)
        assert window is not None
        yield window
    finally:
        if window is not None:
            window.close()
        process.terminate()
        process.wait(60)
