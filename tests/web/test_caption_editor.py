"""The captions on Dataset Viewer in Chromium, with the keyboard: what was not saved is there after another run, and asked about as
the page is left; a caption changed elsewhere is shown before it is replaced. Needs Chromium and its driver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import Browser

from .recorded import Recorded, page

VIEW = "0123456789abcdef"
NODE = """
const { app } = await import("/scripts/app.js");
await import("/extensions/pack/dataset_viewer.js");
const extension = app.extensions.find((one) => one.name === "MusubiTuner.DatasetViewer");
await extension.init();
document.getElementById("side").replaceChildren();
window.viewer = () => {
  const node = { comfyClass: "MusubiTuner_DatasetViewer", size: [420, 300], properties: {} };
  node.addDOMWidget = (name, kind, whole) => {
    document.getElementById("side").replaceChildren(whole);
    return {};
  };
  extension.nodeCreated(node);
  return node;
};
window.node = viewer();
"""
BOXES = "[...document.querySelectorAll('.musubi-viewer textarea')]"
FACTS = "[...document.querySelectorAll('.musubi-facts')].map((one) => one.innerText)"


class Captions(Recorded):
    """Three items of a dataset, two of which are called alike."""

    def __init__(self) -> None:
        super().__init__()
        self.captions = {"a.png": ["a cat", "another cat 🐕"], "b.png": ["海辺の犬"]}
        self.refusal = ""

    def _items(self) -> list[dict[str, Any]]:
        named = [(name, place) for name, captions in sorted(self.captions.items()) for place in range(len(captions))]
        box = [0, 0, 160, 96]
        return [
            {
                "number": number,
                "name": name,
                "facts": "160×96",
                "caption": self.captions[name][place],
                "problem": "",
                "locked": "",
                "box": box,
            }
            for number, (name, place) in enumerate(named, 1)
        ]

    def answer(self, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        if path == f"dataset_view/{VIEW}":
            return 200, {"id": VIEW, "page": 1, "pages": 1, "sheet": [160, 96], "items": self._items()}
        if path != "caption":
            return super().answer(path, query, body)
        item = self._items()[body["number"] - 1]
        if self.refusal:
            return 500, {"error": self.refusal}
        if item["caption"] != body["before"]:
            return 409, {"error": "this caption was changed elsewhere in the meantime", "current": item["caption"]}
        place = [one["number"] for one in self._items() if one["name"] == item["name"]].index(body["number"])
        self.captions[item["name"]][place] = body["caption"].strip()
        return 200, {"caption": body["caption"].strip()}


@pytest.fixture
def captions() -> Captions:
    return Captions()


@pytest.fixture
def shown(browser: Browser, captions: Captions) -> Iterator[Browser]:
    with page(captions) as url:
        browser.open(url)
        browser.wait("document.querySelector('#side .mt-item') ? 1 : 0")  # else it comes where the node is to be
        browser.run(NODE)
        run(browser)
        yield browser
        # the next page is opened without a question about this one
        browser.run("window.addEventListener('beforeunload', (event) => event.stopImmediatePropagation(), true);")


def run(browser: Browser, node: str = "node") -> None:
    """The workflow has run, and the captions were read again."""
    browser.run(f"window.before = {BOXES}[0] ?? null; {node}.onExecuted({{ musubi_dataset_view: [{{ id: args[0] }}] }});", VIEW)
    browser.wait(f"{BOXES}[0] && {BOXES}[0] !== window.before ? 1 : 0")


def write(browser: Browser, place: int, text: str) -> None:
    browser.run(f"const box = {BOXES}[args[0]]; box.focus(); box.value = args[1]; box.dispatchEvent(new Event('input'));", place, text)


def leaving_is_asked(browser: Browser) -> bool:
    return bool(browser.run("return !window.dispatchEvent(new Event('beforeunload', { cancelable: true }));"))


def test_what_was_not_saved_is_there_after_another_run_and_on_a_node_made_anew(shown: Browser, captions: Captions) -> None:
    assert not leaving_is_asked(shown)
    write(shown, 1, "another cat, asleep")
    shown.run(f"{BOXES}[1].setSelectionRange(3, 5);")
    assert leaving_is_asked(shown)
    captions.captions = {"Z.png": ["new"], **captions.captions}  # "Z" comes first: the numbers of the others change
    run(shown)
    said = f"return {BOXES}.map((one) => one.value);"
    assert shown.run(said) == ["new", "a cat", "another cat, asleep", "海辺の犬"]
    caret = "const one = document.activeElement; return [one.value, one.selectionStart, one.selectionEnd];"
    assert shown.run(caret) == ["another cat, asleep", 3, 5], "whoever types goes on"
    shown.run("window.node = viewer();")
    run(shown)
    assert shown.run(said)[2] == "another cat, asleep"
    write(shown, 2, "another cat 🐕")
    assert not leaving_is_asked(shown)


def test_the_keyboard_alone_saves_and_stays_in_its_row(shown: Browser, captions: Captions) -> None:
    write(shown, 2, "日本の犬 🎉\nsecond line")
    shown.press("Tab")
    assert shown.run("return document.activeElement.title;") == "Save the caption of b.png (Ctrl+Enter)"
    shown.press("Enter")
    shown.wait(f"{FACTS}[2] === 'saved' ? 1 : 0")
    assert captions.captions["b.png"] == ["日本の犬 🎉\nsecond line"]
    assert shown.run(f"return document.activeElement === {BOXES}[2];"), "the button is gone"
    captions.refusal = "the caption was not saved: Read-only file system"
    write(shown, 2, "once more")
    shown.run("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', ctrlKey: true, bubbles: true }));")
    shown.wait(f"{FACTS}[2] === '{captions.refusal}' ? 1 : 0")
    assert shown.run(f"return [{BOXES}[2].value, document.querySelectorAll('.musubi-facts')[2].getAttribute('role')];") == [
        "once more",
        "status",
    ]
    unnamed = [role for role, name in shown.spoken() if role in ("button", "textbox") and not name]
    assert unnamed == []


def test_a_caption_changed_elsewhere_is_shown_before_it_is_replaced(shown: Browser, captions: Captions) -> None:
    write(shown, 0, "mine")
    captions.captions["a.png"][0] = "theirs"
    changed = "Changed elsewhere meanwhile. It is now: theirs. Save again to replace it."
    press = f"{BOXES}[0].nextElementSibling.click();"
    shown.run(press)
    shown.wait(f"{FACTS}[0] === '{changed}' ? 1 : 0")
    assert captions.captions["a.png"][0] == "theirs"
    captions.captions["a.png"][0] = "theirs again"
    run(shown)
    shown.wait(f"{FACTS}[0].includes('It is now: theirs again.') ? 1 : 0")
    shown.run(press)
    shown.wait(f"{FACTS}[0] === 'saved' ? 1 : 0")
    assert captions.captions["a.png"] == ["mine", "another cat 🐕"]
