"""Windows and questions of the pack in Chromium, with the keyboard and as a screen reader hears them: everything has a name, keys do not
reach the graph below, Escape leaves, and what was focused before is again. Needs Chromium and its driver."""

from __future__ import annotations

import pytest
from browser import Browser

from .recorded import Recorded
from .test_my_workflow import graph
from .test_trainings_page import NAMED

WAYS = {  # what is pressed -> what a screen reader hears of the window
    "Sample with my workflow…": {"dialog", "combobox", "checkbox", "button", "group"},
    "Clean up…": {"dialog", "checkbox", "button"},
    "step ": {"dialog", "button", "Video"},
    "Upload clips…": {"dialog", "textbox", "button"},
    "Read it in a large window": {"dialog", "document", "button"},
}
FOCUSED = "return document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText.trim();"
IN_DIALOG = "document.querySelector('dialog[open]')?.contains(document.activeElement)"
OTHERS = """
const { app } = await import("/scripts/app.js");
await import("/extensions/pack/upload_clips.js");
const { report } = await import("/extensions/pack/trainings/report.js");
const more = document.createElement("div");
document.body.append(more);
const node = {
  size: [400, 300], widgets: [], properties: {}, comfyClass: "MusubiTuner_DatasetConfig", computeSize: () => [400, 300], setSize() {},
  addDOMWidget(name, kind, whole) { more.append(whole); return {}; },
  addWidget(kind, name, value, press) {
    const button = document.createElement("button");
    button.textContent = "Upload clips…";
    button.onclick = press;
    more.append(button);
    return { options: {} };
  },
};
app.extensions.find((one) => one.name === "MusubiTuner.UploadClips").nodeCreated(node);
await report(node, { text: "a line\\nand another", line: "2 lines" });
window.graph = [];
window.addEventListener("keydown", (event) => graph.push(event.key)); // where the graph has its shortcuts
"""


@pytest.fixture
def shown(running: Browser) -> Browser:
    """The tab with the training that runs, and next to it what nodes have."""
    running.wait("document.querySelector('.mt-gallery .mt-sample') ? 1 : 0")
    running.run("window.app.graph_ = args[0];", {"output": graph(), "workflow": {"nodes": []}})
    running.run(OTHERS)
    return running


def button(words: str) -> str:
    return f"[...document.querySelectorAll('button')].find((one) => (one.ariaLabel ?? one.innerText).trim().startsWith(`{words}`))"


@pytest.mark.parametrize("opens", WAYS)
def test_a_window_is_heard_keeps_its_keys_and_gives_back_what_was_focused(shown: Browser, opens: str) -> None:
    shown.wait(f"{button(opens)} ? 1 : 0", 20)
    shown.run(f"window.opener_ = {button(opens)}; opener_.focus();")
    shown.press("Enter")
    shown.wait(f"{IN_DIALOG} ? 1 : 0", 20)
    if opens == "Sample with my workflow…":
        shown.wait("document.querySelectorAll('dialog[open] input').length === 4 ? 1 : 0", 20)
    spoken = shown.spoken()
    assert [role for role, name in spoken if role in NAMED and not name] == []
    assert {role for role, _ in spoken} >= WAYS[opens]
    shown.run("window.graph.length = 0;")
    shown.press("r")
    assert shown.run("return window.graph;") == [], "ComfyUI would take it as a shortcut"
    shown.press("Escape")
    shown.wait("document.querySelector('dialog') ? 0 : 1", 20)
    shown.wait("document.activeElement === opener_ ? 1 : 0", 20)


def test_what_became_of_it_is_heard_and_the_focus_stays_in_the_window(shown: Browser, recorded: Recorded) -> None:
    def heard() -> str:
        shown.wait("document.activeElement.getAttribute('role') === 'status' ? 1 : 0", 20)
        return str(shown.run("return document.activeElement.innerText;"))

    _press(shown, "Sample with my workflow…", "document.querySelectorAll('dialog[open] input').length === 4")
    shown.run("window.api.refusal = { error: { message: 'no such model' }, node_errors: {} };")
    _press(shown, "Queue", "document.activeElement.innerText.includes('no such model')")
    assert "was not queued" in heard()
    recorded.kept = {"mine": {"prompt": graph(), "workflow": None}}
    shown.press("Escape")
    _press(shown, "Sample with my workflow…", "document.querySelectorAll('dialog[open] option').length === 2")
    shown.run("const list = document.querySelector('dialog[open] select'); list.value = 'mine'; list.dispatchEvent(new Event('change'));")
    _press(shown, "Forget this workflow", "document.querySelectorAll('dialog[open] option').length === 1")
    shown.wait("document.activeElement.tagName === 'SELECT' ? 1 : 0", 20)
    shown.press("Escape")

    _press(shown, "Clean up…", "document.querySelectorAll('dialog[open] .mt-storage input').length > 1")
    shown.run("document.querySelector('dialog[open] .mt-storage input:not(:disabled)').click();")
    _press(shown, "Remove", "document.querySelector('dialog[open] [role=alertdialog]')")
    shown.press("Escape")
    shown.wait("document.querySelector('[role=alertdialog]') ? 0 : 1", 20)
    assert shown.run(FOCUSED) == "Remove" and shown.run("return document.querySelectorAll('dialog[open]').length;") == 1, (
        "only the question"
    )
    _press(shown, "Remove", "document.querySelector('dialog[open] [role=alertdialog]')")
    shown.run("document.querySelector('[role=alertdialog] .mt-danger').focus();")
    shown.press("Enter")
    shown.wait("document.querySelector('dialog[open] [role=status]').innerText ? 1 : 0", 20)
    assert heard()
    shown.press("Escape")

    _press(shown, "Upload clips…", "document.querySelector('.musubi-upload')")
    shown.run("const box = document.querySelector('.musubi-upload input'); box.value = '..';")
    shown.run("document.querySelector('.musubi-upload form').dispatchEvent(new Event('submit', { cancelable: true }));")
    assert shown.run("return [document.activeElement.type, document.activeElement.getAttribute('aria-invalid')];") == ["text", "true"]


def test_the_question_whether_to_end_a_training_leads_back_to_its_button(shown: Browser) -> None:
    for answer in ("Escape", "Enter"):
        _press(shown, "Kill", "document.querySelector('[role=alertdialog]')")
        shown.press(answer)
        shown.wait("document.querySelector('[role=alertdialog]') ? 0 : 1", 20)
        assert shown.run(FOCUSED) == "Kill"


def _press(browser: Browser, words: str, until: str) -> None:
    """With the keyboard."""
    browser.wait(f"{button(words)} && !{button(words)}.disabled ? 1 : 0", 20)
    browser.run(f"{button(words)}.focus();")
    browser.press("Enter")
    browser.wait(f"{until} ? 1 : 0", 20)
