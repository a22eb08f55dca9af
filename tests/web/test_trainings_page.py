"""The tab "Trainings" in Chromium, on recorded answers of the server: every state, the keyboard, what buttons ask, live messages, and the
time that the page is busy with them. Needs Chromium and its driver."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from browser import Browser
from musubi_backend.options.registry import tools
from named_widgets import CALLED, wrong

from .recorded import PROMPTS, STATES, WEB, Recorded, job, page

OTHER_WORDS = {"queued": "queued · 1", "waiting": "queued · 2", "foreign": "running"}


class Tab:
    def __init__(self, browser: Browser, recorded: Recorded, url: str) -> None:
        self.browser, self.recorded, self.url = browser, recorded, url

    def open(self, query: str = "") -> None:
        self.browser.open(self.url + query)
        self.browser.wait("document.querySelector('.mt-item, .mt-message p') && !document.querySelector('.mt-message .pi-spinner') ? 1 : 0")

    def text(self, selector: str) -> str:
        return str(self.browser.run("return document.querySelector(args[0])?.innerText ?? '';", selector))

    def show(self, state: str) -> None:
        """Go to the training in this state, once it is in the list."""
        row = f"document.querySelector(`[data-id='{STATES[state]['id']}']`)"
        self.browser.wait(f"{row} ? 1 : 0")
        self.browser.run(f"{row}.click(); return 1;")
        self.browser.wait("document.querySelector('.mt-title')?.textContent ? 1 : 0")

    def press(self, words: str) -> None:
        buttons = "[...document.querySelectorAll('.mt-detail button, .mt-bar-top button')]"
        self.browser.click(f"{buttons}.find(one => (one.innerText || one.ariaLabel).trim() === `{words}`)")


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    recorded = Recorded()
    with page(recorded) as url:
        yield Tab(browser, recorded, url)


def test_every_state_has_its_word_and_its_numbers(tab: Tab) -> None:
    tab.open()
    asked = "performance.getEntriesByType('resource').sort((a, b) => a.startTime - b.startTime).map(one => one.name.split('/').pop())"
    # a browser notes what was asked once it is answered: twice for the toasts, then for the tab
    tab.browser.wait(f"{asked}.filter(name => name === 'jobs').length === 3 ? 1 : 0")
    order = tab.browser.run(f"return {asked};")
    assert order.index("jobs") < order.index("style.css"), "before ComfyUI draws its page, which lets answers wait"
    for state, one in STATES.items():
        assert tab.text(f"[data-id='{one['id']}'] .mt-badge").strip() == OTHER_WORDS.get(state, state)
    running = tab.text(f"[data-id='{STATES['running']['id']}'] .mt-line")
    assert running == "loss 0.0784 · 640 / 1\u202f600 · 20 min left"
    assert "CUDA out of memory" in tab.text(f"[data-id='{STATES['failed']['id']}'] .mt-error-line")
    line = f"document.querySelector(`[data-id='{STATES['running']['id']}'] .mt-line`)"
    tab.browser.run(f"window.line = {line};")
    news = {**STATES["running"], "step": 800, "phase": "epoch 62 of 85", "version": 2}
    tab.browser.run("window.api.say('musubi_tuner.jobs', { jobs: [args[0]], removed: [] });", news)
    tab.browser.wait(f"{line}.innerText.includes('800 /') ? 1 : 0")
    shown = tab.browser.run(f"return {line}.innerText;")
    assert shown.endswith("800 / 1\u202f600 · 20 min left · epoch 62 of 85"), "what is cut, where there is little room, comes last"
    assert tab.browser.run(f"return {line} === window.line;"), "a row is changed, not made anew"
    assert tab.browser.run(f"return {line}.nextElementSibling.getAttribute('aria-valuenow');") == "50"
    late = """
      const { jobs } = await import("/extensions/pack/trainings/server.js");
      const answer = await fetch("/api/musubi_tuner/jobs"), ask = api.fetchApi;
      let send;
      api.fetchApi = () => new Promise((resolve) => (send = () => resolve(answer)));
      const loading = jobs.load();
      api.say("musubi_tuner.jobs", { jobs: [args[0]], removed: [] });
      send();
      await loading;
      api.fetchApi = ask;
      return jobs.byId.get(args[0].id).step;
    """
    assert tab.browser.run(late, {**news, "step": 900, "version": 3}) == 900, "a list that was on its way is older than a message"

    tab.show("failed")
    tab.browser.wait("document.querySelector('[role=alert]') ? 1 : 0")
    assert "Raise blocks_to_swap" in tab.text("[role=alert]") and "The whole log" in tab.text("[role=alert] pre")
    tab.press("Back to the list")
    for state, said in (("stopped", "stopped at step 700, state saved"), ("lost", "continue from there"), ("queued", "place 1 of 2")):
        tab.show(state)
        assert said in tab.text(".mt-how"), state
        if state == "stopped":
            assert tab.text(".mt-unit") == "steps beyond 1\u202f600", "where it was to end, not where it stopped"
        if state == "lost":
            assert "nothing says" not in tab.text(".mt-how"), "its step is shown below"
        if state == "queued":
            assert "TensorBoard" not in tab.text(".mt-buttons"), "there is nothing of it to look at yet"
        tab.press("Back to the list")

    tab.recorded.jobs = []
    tab.press("Read the list again")
    tab.browser.wait("document.querySelector('.mt-message').innerText.includes('No trainings yet') ? 1 : 0")
    tab.browser.run("document.querySelector('.mt-message button').click(); return 1;")
    assert tab.browser.run("return window.app.commands;") == ["Comfy.BrowseTemplates"]
    going = {"kind": "tool", "verb": "plan_memory", "name": "", "state": "running", "outcome": None, "ended": None}
    tab.recorded.jobs = [job(1, **going)]
    tab.press("Read the list again")
    tab.browser.wait("document.querySelector('.mt-name')?.innerText === 'Planning the memory' ? 1 : 0")
    assert tab.text(".mt-message") == "", "a training is being prepared"
    tab.recorded.jobs = []
    tab.recorded.broken = True
    tab.press("Read the list again")
    tab.browser.wait("document.querySelector('.mt-message').innerText.includes('config.json is damaged') ? 1 : 0")
    tab.recorded.broken = False
    tab.recorded.jobs = [job(number) for number in range(1, 1001)]
    tab.browser.run("document.querySelector('.mt-message button').click(); return 1;")
    tab.browser.wait("document.querySelectorAll('.mt-item').length === 100 ? 1 : 0")
    assert "100 of 1000" in tab.text(".mt-foot")
    tab.recorded.most = 999
    tab.press("Read the list again")
    tab.browser.wait("document.querySelector('.mt-foot').innerText.includes('100 of 999+') ? 1 : 0")


def test_older_jobs_than_those_that_are_listed_are_found_by_their_words_and_kind(tab: Tab) -> None:
    small = {"kind": "tool", "verb": "plan_memory", "name": "", "run": None}
    board = {**small, "verb": "tensorboard"}
    tab.recorded.jobs = [job(number, **(small if number % 2 else {})) for number in range(1, 31)]
    tab.recorded.jobs[28] |= {**board, "state": "running", "outcome": None, "ended": None}
    tab.recorded.jobs += [job(31, **board), job(32, outcome="failed"), job(33, name="the first cat")]
    tab.recorded.most, tab.recorded.queue = 4, {"waiting": [], "running": [], "keeper": None}
    tab.open()
    names = "[...document.querySelectorAll('.mt-name')].map((one) => one.innerText)"
    older = "[...document.querySelectorAll('.mt-foot button')].find((one) => one.innerText.trim() === 'Show older ones')"

    def shows(*wanted: str) -> None:
        tab.browser.wait(f"JSON.stringify({names}) === '{json.dumps(wanted, separators=(',', ':'))}' ? 1 : 0", 20)

    def ask(element: str, value: str, event: str) -> None:
        box = f"document.querySelector('{element}')"
        tab.browser.run(f"{box}.value = args[0]; {box}.dispatchEvent(new Event('{event}'));", value)

    shows("TensorBoard", *(f"character_{number}" for number in (2, 4, 6, 8)))
    tab.browser.run(f"{older}.click();")
    shows("TensorBoard", *(f"character_{number}" for number in range(2, 17, 2)))
    ask(".mt-search", "first cat", "input")
    shows("the first cat")
    assert tab.browser.run(f"return {older} ?? null;") is None, "there is no other"
    ask(".mt-search", "tensorb", "input")
    ask(".mt-list .mt-select", "", "change")
    shows("TensorBoard", "TensorBoard")
    ask(".mt-search", "", "input")
    shows("TensorBoard", "Planning the memory", "character_2", "Planning the memory", "character_4")
    ask(".mt-list .mt-select", "failed", "change")
    shows("character_32")
    tab.press("Read the list again")
    shows("character_32")
    ask(".mt-search", "nobody has this", "input")
    tab.browser.wait("document.querySelector('.mt-message').innerText.includes('Nothing fits') ? 1 : 0")


KINDS = {  # kind of a job -> verb, what it is called, the buttons and the tabs of one that runs
    "tool": ("tensorboard", "TensorBoard", ["Stop", "Open its workflow", "Copy the path"], ["Files", "Log"]),
    "caching": ("cache_text", "Caching captions", ["Stop", "Open its workflow", "Copy the path"], ["Files", "Log"]),
    "generation": ("generate", "Generation", ["Stop", "Open its workflow", "Copy the path"], ["Files", "Log"]),
    "training": (
        "train",
        "cat",
        ["Stop", "Kill", "Sample with my workflow…", "TensorBoard", "Open its workflow", "Copy the path"],
        ["Samples 6", "Items", "Files", "Settings", "Log"],
    ),
}


def test_jobs_of_every_kind_are_called_what_they_are_and_offer_what_makes_sense(tab: Tab) -> None:
    hints = {"training": "not saved yet is lost", "caching": "What is cached stays"}
    going = {"state": "running", "outcome": None, "ended": None, "engine": "musubi-tuner", "phase": "", "can": ["stop"]}
    tab.recorded.jobs = []
    for number, (kind, (verb, *_)) in enumerate(KINDS.items(), 1):
        own = (
            {"name": "cat", "can": ["stop", "kill"], "step": 640}
            if kind == "training"
            else {"name": "", "run": None, "loss": None, "step": 0}
        )
        tab.recorded.jobs.append(job(number, **{**going, "kind": kind, "verb": verb, **own}))
    tab.recorded.jobs.append(job(9, kind="tool", verb=None, tool="of_another_version", name="", state="running"))
    tab.open()
    for one, (kind, (_, called, buttons, tabs)) in zip(tab.recorded.jobs, KINDS.items(), strict=False):
        tab.browser.run(f"document.querySelector(`[data-id='{one['id']}']`).click();")
        tab.browser.wait(f"document.querySelector('.mt-title')?.textContent === '{called}' ? 1 : 0")
        said = (
            "[...document.querySelectorAll('.mt-detail {} button')].filter(one => one.checkVisibility()).map(one => one.innerText.trim())"
        )
        assert tab.browser.run(f"return {said.format('.mt-buttons')};") == buttons, kind
        assert tab.browser.run(f"return {said.format('.mt-tabs')};") == tabs, kind
        hint = tab.browser.run("return document.querySelector('.mt-detail .mt-buttons .mt-first').title;")
        assert hints.get(kind, "What is finished stays") in hint
        tab.press("Back to the list")
    name = f"document.querySelector(`[data-id='{tab.recorded.jobs[-1]['id']}'] .mt-name`)"
    tab.browser.wait(f"{name}?.innerText === 'Tool of_another_version' ? 1 : 0")


def test_every_tool_has_a_name_on_the_page() -> None:
    named = json.loads((WEB / "texts" / "en.json").read_text(encoding="utf-8"))
    assert {f"kind.{tool.verb}" for tool in tools().values()} - set(named) == set()


NAMED = {
    "button",
    "checkbox",
    "combobox",
    "dialog",
    "image",
    "link",
    "list",
    "log",
    "progressbar",
    "radio",
    "searchbox",
    "slider",
    "spinbutton",
}
NAMED |= {"switch", "tab", "table", "tablist", "tabpanel", "textbox", "Video"}


def test_a_screen_reader_is_told_a_name_for_everything_and_what_changes(tab: Tab) -> None:
    def named(where: str, *wanted: str) -> None:
        spoken = tab.browser.spoken()
        assert [role for role, name in spoken if role in NAMED and not name] == [], where
        assert {role for role, _ in spoken} >= {*wanted}, where

    running = {**STATES["running"], "attempt": 2}
    tab.recorded.jobs[0] = running
    tab.open()
    named("the list", "list", "searchbox", "combobox", "button")
    settings = "app.extensions.flatMap(one => one.settings ?? []).map(one => one.type())"
    tab.browser.run(f"window.set = document.createElement('div'); set.append(...{settings}); document.body.append(set);")
    tab.browser.wait("set.querySelector('input[type=number]') ? 1 : 0")
    named("the settings", "spinbutton", "textbox")
    tab.browser.run("set.remove();")
    tab.show("running")
    tab.browser.wait("document.querySelectorAll('.mt-detail .mt-plot canvas').length > 1 ? 1 : 0")
    for part, wanted in (("samples", "table"), ("items", "table"), ("files", "list"), ("settings", "table"), ("log", "log")):
        tab.browser.run("document.getElementById(`mt-tab-${args[0]}`).click();", part)
        named(part, wanted, "tab", "image", "slider")
    for opens in ("Clean up…", "As large as the page"):
        button = f"document.querySelector('.mt-bar-top [aria-label=\"{opens}\"]')"
        tab.browser.run(f"{button}.focus(); {button}.click();")
        tab.browser.wait("document.querySelector('dialog[open] :is(label, .mt-detail)') ? 1 : 0")
        named(opens, "dialog")
        tab.browser.press("Escape")
        tab.browser.wait("document.querySelector('dialog[open]') ? 0 : 1")
        tab.browser.wait(f"document.activeElement.ariaLabel === '{opens}' ? 1 : 0")  # where it was before

    badge = "document.querySelector('.mt-detail header [role=status] .mt-badge')"
    tab.browser.run(
        f"window.badge = {badge}; window.told = 0; const see = new MutationObserver(() => window.told++);"
        "see.observe(document.querySelector('.mt-how'), { childList: true }); see.observe(badge.parentElement, { childList: true });"
    )
    for number in (1, 2):
        tab.recorded.jobs[0] = {**running, "step": 640 + number, "text": f"loss 0.1 · {number}", "version": 1 + number}
        tab.browser.run("window.api.say('musubi_tuner.jobs', { jobs: [args[0]], removed: [] });", tab.recorded.jobs[0])
        tab.browser.wait(f"document.querySelector('.mt-number:nth-child(2) b').innerText === '64{number}' ? 1 : 0")
    assert tab.browser.run("return window.told;") == 0, "a step is not read out"
    tab.recorded.jobs[0] = {**STATES["stopped"], "id": STATES["running"]["id"], "version": 9}
    tab.browser.run("window.api.say('musubi_tuner.jobs', { jobs: [args[0]], removed: [] });", tab.recorded.jobs[0])
    tab.browser.wait("window.badge.innerText.trim() === 'stopped' ? 1 : 0")
    assert tab.text(".mt-how[role=status]").startswith("stopped at step 700, state saved"), "that it ended is"


_FOLDED = """
const node = (more) => ({
  size: [400, 300], widgets: [], properties: {}, computeSize: () => [400, 300], setSize() {},
  setProperty(name, value) { this.properties[name] = value; },
  addDOMWidget(name, kind, whole) { whole.classList.add(this.name); document.body.append(whole); return {}; },
  ...more,
});
const trainer = node({ id: 11, comfyClass: "MusubiTuner_WanLoRATrainer", name: "inside" });
const other = node({ id: 2, comfyClass: "MusubiTuner_WanLoRATrainer", name: "other" });
const cache = node({ id: 10, comfyClass: "MusubiTuner_VAELatentCache", name: "cache" });
window.app.graph = { nodes: [node({ id: 1, name: "outside", subgraph: { nodes: [trainer, cache] } }), other] };
if (args[0] === null) window.api.say("musubi_tuner.begins", { node: "1:10", job: args[1] });
else window.api.say("musubi_tuner.node", { node: "1:11", job: args[0] });
return 1;
"""

_REOPENED = """
window.reopened = window.app.graph.nodes[0];
window.reopened.properties.musubi_job = args[0];
for (const one of window.app.extensions) one.loadedGraphNode?.(window.reopened);
return 1;
"""


def test_a_folded_training_is_watched_on_the_node_that_it_is_folded_into(tab: Tab) -> None:
    tab.open()
    running = STATES["running"]["id"]
    tab.browser.run(_FOLDED, running)
    for name in ("inside", "outside"):
        tab.browser.wait(f"document.querySelector('.mt-node.{name} .mt-badge')?.innerText.trim() === 'running' ? 1 : 0")
    assert tab.browser.run("return window.app.graph.nodes.map((one) => one.properties.musubi_job ?? null);") == [running, None]
    assert tab.browser.run("return document.querySelector('.mt-node.other');") is None
    going = {"state": "running", "outcome": None, "ended": None, "samples_every": 9000}
    kind = {"kind": "caching", "tool": "wan_cache_latents", "verb": "cache_latents", "name": "", "run": None}
    caching = job(12, **going, **kind, step=1, total=4, phase="loading the VAE")
    tab.recorded.jobs.append(caching)
    tab.browser.run(_FOLDED.replace("outside", "prepared"), None, caching["id"])
    tab.browser.run("window.api.say('musubi_tuner.jobs', { jobs: [args[0]], removed: [] }); return 1;", caching)
    words = "document.querySelector('.mt-node.prepared')?.innerText.includes('Caching latents · 1 / 4 · loading the VAE') ? 1 : 0"
    tab.browser.wait(words)  # what goes on before it trains is inside, too
    assert tab.browser.run("return document.querySelector('.mt-node.prepared .mt-chart').hidden;"), "it has no loss"
    assert tab.browser.run("return document.querySelector('.mt-node.cache');") is None, "ComfyUI shows its line"
    again = job(0, **going, run=STATES["finished"]["run"])
    tab.recorded.jobs.append(again)
    tab.browser.run(_FOLDED.replace("inside", "continued"), again["id"])
    tab.browser.run("window.api.say('musubi_tuner.jobs', { jobs: [args[0]], removed: [] }); return 1;", again)
    caption = "document.querySelector('.mt-node.continued figcaption')?.textContent.startsWith('step 1\u202f600') ? 1 : 0"
    tab.browser.wait(caption)  # it has made none yet: the last one of its run
    tab.browser.run(_REOPENED, STATES["finished"]["id"])
    tab.browser.wait(f"window.reopened.properties.musubi_job === '{again['id']}' ? 1 : 0")  # it went on while the page was closed
    assert tab.browser.run("return window.app.noted;") > 0, "ComfyUI keeps which training it is"


_UNSEEN = (
    "stop.style.display = 'none';",
    "stop.style.visibility = 'hidden';",
    "stop.parentElement.style.opacity = '0';",
    "stop.disabled = true;",
    "const cover = document.createElement('div'); cover.className = 'cover'; document.body.append(cover);"
    "cover.style.cssText = 'position: fixed; inset: 0; z-index: 9999';",
)
_SEEN = "stop.style.cssText = stop.parentElement.style.cssText = ''; stop.disabled = false; document.querySelector('.cover')?.remove();"


def test_a_button_that_nobody_can_press_is_not_pressed(tab: Tab) -> None:
    tab.open()
    tab.show("running")
    stop = "document.querySelector('.mt-detail .mt-first')"
    for change in _UNSEEN:
        tab.browser.run(f"const stop = {stop}; {change}")
        with pytest.raises(AssertionError, match="is under"):
            tab.browser.click(stop, seconds=0)
        tab.browser.run(f"const stop = {stop}; {_SEEN}")
    assert tab.recorded.asked == []
    tab.browser.click(stop)
    tab.browser.wait("document.querySelector('.mt-said').textContent.startsWith('Asked') ? 1 : 0")


def test_when_something_is_done_is_said_as_long_as_it_is_not(tab: Tab) -> None:
    """A step may take minutes."""
    said = "document.querySelector('.mt-said').textContent"
    tab.open()
    tab.show("running")
    tab.press("Save now")
    tab.browser.wait(f"{said} === 'Asked: Save now. It is done at the end of this step.' ? 1 : 0")
    job = next(one for one in tab.recorded.jobs if one["id"] == STATES["running"]["id"])
    job |= {"step": job["step"] + 1, "version": 2}
    tab.browser.run("window.api.say('musubi_tuner.jobs', { jobs: [args[0]], removed: [] });", job)
    tab.browser.wait(f"{said} === '' ? 1 : 0")


_MONITOR = """
window.monitor = {
  id: 1, comfyClass: "MusubiTuner_TrainingMonitor", size: [400, 300], widgets: [{ name: "training" }], properties: {},
  computeSize: () => [400, 300], setSize() {}, setProperty() {},
  addDOMWidget(name, kind, whole) { const made = { name, whole }; this.widgets.push(made); return made; },
};
for (const one of window.app.extensions) one.nodeCreated?.(window.monitor);
"""


def test_the_curve_of_an_ended_training_stands_above_the_report(tab: Tab) -> None:
    tab.open()
    tab.browser.run("await import('/extensions/pack/trainings/on_node.js'); await import('/extensions/pack/trainings/report.js');")
    report, training = {"musubi_report": [{"text": "loss 0.1", "line": "cat"}]}, {"musubi_job": [{"id": STATES["finished"]["id"]}]}
    names = "window.monitor.widgets.map((one) => one.name).join()"
    for said in (report | training, report):  # at once, or the text first
        tab.browser.run(_MONITOR)
        tab.browser.run("window.monitor.onExecuted(args[0]);", said)
        tab.browser.wait(f"{names}.includes('musubi_report') ? 1 : 0")
        tab.browser.run("window.monitor.onExecuted(args[0]);", report | training)
        tab.browser.wait(f"{names} === 'training,musubi_training,musubi_report' ? 1 : 0", 20)


def test_a_row_out_of_sight_is_brought_up_to_date_when_it_comes_into_sight(tab: Tab) -> None:
    going = {"state": "running", "outcome": None, "ended": None, "phase": "training"}
    tab.recorded.jobs = [job(number, **going, step=1) for number in range(1, 61)]
    tab.open()
    first, last = (f"document.querySelector(`[data-id='{tab.recorded.jobs[place]['id']}'] .mt-line`)" for place in (0, -1))
    assert "1 / 1" in tab.browser.run(f"return {last}.textContent;"), "it says something before anybody looks"
    for step in (2, 3):
        news = [{**one, "step": step, "version": step} for one in tab.recorded.jobs]
        tab.browser.run("window.api.say('musubi_tuner.jobs', { jobs: args[0], removed: [] });", news)
        tab.browser.wait(f"{first}.textContent.includes('{step} / ') ? 1 : 0")
        assert "1 / 1" in tab.browser.run(f"return {last}.textContent;")
    tab.browser.run(f"{last}.scrollIntoView();")
    tab.browser.wait(f"{last}.textContent.includes('3 / ') ? 1 : 0")


def test_a_training_is_watched_and_steered(tab: Tab) -> None:
    tab.recorded.jobs[0]["validated"] = 639  # it is measured after the step, whose loss is read already
    compared = {"samples_every": 50, "prompts": [*reversed(PROMPTS), "step 50 at 0.8"]}
    tab.recorded.jobs.append({**job(35, run=STATES["running"]["run"], step=150), **compared})
    tab.open()
    tab.show("running")
    tab.browser.wait("document.querySelector('.mt-plot canvas') ? 1 : 0")
    label = "document.querySelector('.mt-plot').getAttribute('aria-label')"
    assert "to" in tab.browser.run(f"return {label};") and "at step 640" in tab.browser.run(f"return {label};")
    assert "Validation loss: from 0.258 at step 80 to 0.306 at step 560" in tab.browser.run(f"return {label};")

    report = "document.querySelector('.mt-optimizer')"
    said = tab.browser.run(f"return [{report}.previousSibling.textContent, {report}.textContent];")
    assert said == ["What the optimizer says at step 600", "importance_statistics / mean: 0.41"]

    known = STATES["running"]
    for number in range(1, 4):  # messages come as ComfyUI's page hands them on
        tab.recorded.jobs[0] = {**known, "step": 640 + number, "version": 1 + number}
        tab.browser.run("window.api.say('musubi_tuner.jobs', { jobs: [args[0]], removed: [] }); return 1;", tab.recorded.jobs[0])
    tab.browser.wait(f"{label}.includes('at step 643') ? 1 : 0")
    steps = "document.querySelector('.mt-number:nth-child(2) b').innerText"  # read before the curve, so it may be behind
    tab.browser.wait(f"{steps} === '643' ? 1 : 0")
    assert "to 0.314 at step 640" in tab.browser.run(f"return {label};"), "of the last step that was there, what came after its loss too"

    tab.browser.run("document.querySelector('.mt-plot').focus(); return 1;")
    for key in ("Left", "Left", "+"):
        tab.browser.press(key)
    assert tab.text(".mt-readout b").startswith("step 6")
    zoomed = tab.browser.run("return document.querySelector('.mt-readout').innerText;")
    assert "smoothed" in zoomed

    tab.press("Stop and save")
    tab.browser.wait("document.querySelector('.mt-said').textContent.includes('Stop and save') ? 1 : 0")
    tab.press("Kill")
    tab.browser.wait("document.querySelector('[role=alertdialog]') ? 1 : 0")
    tab.press("Let it continue")
    names = [body.get("name") for path, body in tab.recorded.asked]
    assert names == ["stop"], "a kill is asked for twice"
    tab.press("Kill")
    tab.press("End it now")
    tab.browser.wait("document.querySelector('.mt-said').textContent.includes('Kill') ? 1 : 0")
    assert tab.recorded.asked[-1] == (f"jobs/{known['id']}/request", {"name": "kill"})

    tab.press("TensorBoard")
    tab.browser.wait("document.querySelector('.mt-said a')?.href === 'http://127.0.0.1:6006/' ? 1 : 0")
    tab.browser.run("document.addEventListener('copy', () => (window.taken = document.getSelection().toString()));")
    tab.browser.run("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true });")
    tab.press("Copy the path")
    tab.browser.wait("document.querySelector('.mt-said').textContent.startsWith('Copied') ? 1 : 0")
    assert tab.browser.run("return window.taken;") == f"/home/me/ComfyUI/user/__musubituner/runs/{known['run']}"
    assert tab.browser.run("return document.querySelectorAll('.mt-gallery tbody tr').length;") == 6, "those of the run's earlier job too"
    assert "step 600 · a red chessboard" in tab.browser.run("return document.querySelector('.mt-sample').getAttribute('aria-label');")
    oldest = "[...document.querySelectorAll('.mt-gallery tr:last-child td')]"
    labels = tab.browser.run(f"return {oldest}.map((cell) => cell.firstChild.getAttribute('aria-label'));")
    assert labels == [f"step 50 · {text}" for text in (*PROMPTS, "step 50 at 0.8")]
    files = tab.browser.run(f"return {oldest}.map((cell) => cell.querySelector('[data-url]').dataset.url.split('/').pop());")
    assert files == ["151", "150", "152"], "each under its prompt, wherever that stood"
    narrow = "document.getElementById('side').style.width = '300px'; const inside = document.querySelector('.mt-inside');"
    assert tab.browser.run(f"{narrow} return inside.scrollWidth - inside.clientWidth;") == 0, "nothing is cut off beside the graph"
    tab.browser.run("document.getElementById('mt-tab-samples').focus(); return 1;")
    tab.browser.press("Right")
    assert tab.text(".mt-items tbody").split() == ["blurred", "0.420", "cat_on_a_wall", "0.0700"], "which clip stays bad, worst first"
    for _ in range(3):
        tab.browser.press("Right")
    assert tab.browser.run("return document.activeElement.id;") == "mt-tab-log"
    box = "document.querySelector('.mt-logs input')"
    tab.browser.run(f"{box}.value = 'STEP 63'; {box}.dispatchEvent(new Event('input')); return 1;")
    tab.browser.wait("document.querySelectorAll('.mt-log mark').length === 11 ? 1 : 0")


def test_trainings_are_laid_over_each_other_and_the_queue_is_put_in_order(tab: Tab) -> None:
    tab.open()
    second = STATES["waiting"]["id"]
    earlier = f"document.querySelector('[data-id=\"{second}\"]').parentElement.querySelector('.mt-order button')"
    tab.browser.run(f"{earlier}.focus(); return 1;")
    tab.browser.press("Enter")
    tab.browser.wait(f"document.querySelector('[data-id=\"{second}\"] .mt-badge').innerText.trim() === 'queued · 1' ? 1 : 0")
    tab.browser.wait("document.activeElement.ariaLabel === 'Later in the queue: after' ? 1 : 0")
    first = STATES["queued"]["id"]
    assert tab.recorded.asked == [("queue", {"order": [second, first]})]
    last = {**STATES["starting"], "state": "queued"}
    tab.browser.run(
        "window.api.say('musubi_tuner.jobs', args[0]);",
        {"jobs": [last], "queue": {**tab.recorded.queue, "waiting": [second, first, last["id"]]}},
    )
    up = f"document.querySelector('[data-id=\"{last['id']}\"]')?.parentElement.querySelector('.mt-order button')"
    tab.browser.wait(f"{up} ? 1 : 0")
    tab.browser.run(f"const up = {up}; up.click(); up.click(); return 1;")
    tab.browser.wait("performance.getEntriesByType('resource').filter(one => one.name.endsWith('/queue')).length === 3 ? 1 : 0")
    assert [body["order"][0] for _, body in tab.recorded.asked] == [second, second, last["id"]], "each press goes on from the one before"

    tab.recorded.refuses_orders = True
    tab.recorded.jobs = [last if one["id"] == last["id"] else one for one in tab.recorded.jobs]
    tab.recorded.queue = {**tab.recorded.queue, "waiting": [first, last["id"], second]}  # somebody else did
    down = f"document.querySelector('[data-id=\"{last['id']}\"]').parentElement.querySelector('.mt-order button:last-child')"
    tab.browser.run(f"{down}.click(); return 1;")
    tab.browser.wait("[...document.querySelectorAll('.mt-error-line')].some(one => one.innerText.includes('order is a list')) ? 1 : 0")
    for one, place in ((first, 1), (second, 3)):  # as it is, not as it was
        tab.browser.wait(f"document.querySelector('[data-id=\"{one}\"] .mt-badge').innerText.trim() === 'queued · {place}' ? 1 : 0")
    assert "order is a list" in tab.text(f"[data-id='{last['id']}'] .mt-error-line"), "it stays"

    tab.recorded.jobs[5] = {**STATES["finished"], "more_settings": [{"name": "max_train_epochs", "value": 40, "default": None}]}
    tab.show("finished")
    tab.browser.wait("document.querySelector('.mt-unit').innerText === 'epochs' ? 1 : 0")
    tab.press("Train further")
    tab.browser.wait("performance.getEntriesByType('resource').some(one => one.name.endsWith('/continue')) ? 1 : 0")
    assert tab.recorded.asked[-1] == (f"jobs/{STATES['finished']['id']}/continue", {"epochs": 5}), "in what it counts in"
    tab.browser.wait("document.querySelector('.mt-plot canvas') ? 1 : 0")
    tab.browser.run("document.querySelector('.mt-compare').open = true; return 1;")
    tab.browser.wait("document.querySelectorAll('.mt-with input').length > 2 ? 1 : 0")
    tab.browser.run("document.querySelector('.mt-with input').click(); return 1;")
    tab.browser.wait("document.querySelectorAll('.mt-readout .mt-swatch').length === 4 ? 1 : 0")
    keys = tab.browser.run("return [...document.querySelectorAll('.mt-readout span:has(.mt-rare)')].map(one => one.innerText);")
    assert keys[0] == "finished one: Validation loss" and len(keys) == 2


def test_a_toast_tells_of_each_end_in_the_background_once_over_tabs_and_reloads(tab: Tab) -> None:
    tab.open()
    second = "document.getElementById('second')"
    tab.browser.run("const tab = document.createElement('iframe'); tab.id = 'second'; tab.src = location.href; document.body.append(tab);")
    tab.browser.wait(f"{second}.contentDocument?.querySelector('.mt-item') ? 1 : 0")
    toasts = f"[...window.app.toasts, ...({second}?.contentWindow.app.toasts ?? [])]"
    later = max(one["ended"] or 0 for one in STATES.values()) + 1
    ended = [
        {**STATES["running"], "state": "ended", "outcome": "finished", "text": "finished · 1600 steps", "ended": later, "version": 9},
        {**STATES["paused"], "state": "ended", "outcome": "failed", "error": STATES["failed"]["error"], "ended": later, "version": 9},
        {**STATES["stopping"], "state": "ended", "outcome": "stopped", "ended": later, "version": 9, "background": False},
        {**STATES["queued"], "state": "ended", "outcome": "removed", "ended": later, "version": 9},
    ]
    for one in ended:
        tab.recorded.jobs[[job["id"] for job in tab.recorded.jobs].index(one["id"])] = one
        say = "api.say('musubi_tuner.jobs', { jobs: [args[0]], removed: [] })"
        tab.browser.run(f"for (const tab of [window, {second}.contentWindow]) tab.{say};", one)
    tab.browser.wait(f"{toasts}.length >= 2 ? 1 : 0")
    tab.browser.run("await navigator.locks.request('MusubiTuner.Trainings.told', () => 1);")
    said = {one["summary"]: one for one in tab.browser.run(f"return {toasts};")}
    assert len(tab.browser.run(f"return {toasts};")) == len(said)
    assert {name: one["severity"] for name, one in said.items()} == {"my_cat: finished": "success", "on hold: failed": "error"}
    assert said["on hold: failed"]["detail"] == STATES["failed"]["error"].split("\n")[0] and said["on hold: failed"]["life"] is None
    tab.open()  # a reload
    tab.browser.run("window.api.say('musubi_tuner.jobs', { jobs: [args[0]], removed: [] });", {**ended[0], "version": 10})
    tab.browser.run("await navigator.locks.request('MusubiTuner.Trainings.told', () => 1);")
    assert tab.browser.run("return window.app.toasts;") == []

    tab.recorded.jobs += [job(number, ended=later + number) for number in range(20, 24)]  # while no page was open
    tab.open()
    tab.browser.wait("window.app.toasts.length ? 1 : 0")
    assert [one["summary"] for one in tab.browser.run("return window.app.toasts;")] == ["4 jobs in the background have ended"]


def test_the_settings_of_the_pack_are_read_and_saved(tab: Tab) -> None:
    tab.open()
    tab.browser.run("const made = app.extensions.flatMap(one => one.settings ?? []).map(one => one.type()); document.body.append(...made);")
    field = "document.querySelector('.musubi-{}')"
    tab.browser.wait(f"{field.format('generation')}.value === 'wait' && {field.format('keep_jobs')}.value === '500' ? 1 : 0")
    box = "document.querySelector('.musubi-allowed-folders')"
    tab.browser.wait(f"{box}.value === '/data/clips' ? 1 : 0")
    assert "/comfy/input" in tab.browser.run(f"return {box}.parentElement.querySelector('ul').textContent;")
    tab.browser.wait("document.querySelector('.musubi-backend code') ? 1 : 0")
    assert [*tab.browser.run("return [...document.querySelectorAll('.musubi-backend code')].map(one => one.textContent);")] == [
        '"python" "install.py"',
        '"python" "install.py" --engine musubi-tuner',
    ]
    saved: list[tuple[str, str, object]] = [("generation", "go_ahead", "go_ahead"), ("keep_jobs", "", None), ("restarts", "2", 2)]
    for name, text, value in saved:
        there = field.format(name)
        tab.browser.run(f"{there}.value = args[0]; {there}.dispatchEvent(new Event('change'));", text)
        tab.browser.wait(f"{there}.nextElementSibling.textContent === 'saved' ? 1 : 0")
        assert tab.recorded.asked[-1] == ("queue_settings", {name: value})
    there = field.format("restarts")
    tab.browser.run(f"{there}.value = 11; {there}.dispatchEvent(new Event('change'));")
    tab.browser.wait(f"{there}.nextElementSibling.textContent.includes('from 0 to 10') ? 1 : 0")


def test_what_takes_space_is_chosen_and_removed_but_nothing_that_is_trained(tab: Tab) -> None:
    tab.open()
    tab.press("Clean up…")
    rows = "[...document.querySelectorAll('.mt-storage label')]"
    tab.browser.wait(f"{rows}.length ? 1 : 0")
    assert tab.browser.run(f"return {rows}.map(one => one.querySelector('input').disabled);") == [True, False, False]
    assert "700 MB · states: 2, LoRAs: 3, samples: 12" in tab.browser.run(f"return {rows}[1].innerText;")
    buttons = "[...document.querySelectorAll('dialog .mt-button')]"
    every = "document.querySelector('.musubi-all')"
    tab.browser.run(f"{rows}[1].querySelector('input').click(); return 1;")
    assert tab.browser.run(f"return [{every}.indeterminate, {every}.nextElementSibling.textContent];") == [True, "Chosen: 1 · 700 MB"]
    tab.browser.run(f"{every}.click(); return 1;")
    assert tab.browser.run(f"return {rows}.map(one => one.querySelector('input').checked);") == [False, True, True], "all that can go"
    press = f"{buttons}.findLast(one => one.innerText.trim() === 'Remove').click();"
    tab.browser.run(press)
    assert tab.recorded.asked == [], "it is asked twice"
    ended = sorted(one["id"] for one in STATES.values() if one["state"] == "ended")
    tab.browser.run(press)
    tab.browser.wait("document.querySelector('dialog .mt-said').textContent.startsWith('700 MB') ? 1 : 0")
    [(route, asked)] = tab.recorded.asked
    assert route == "clean" and {**asked, "jobs": sorted(asked["jobs"])} == {
        "runs": ["old-5d0c31f2a9"],
        "jobs": ended,
        "states_only": False,
    }
    tab.browser.wait(f"{rows}.length === 1 ? 1 : 0")


def test_texts_are_there_in_every_language_and_none_is_unused() -> None:
    texts = {name: json.loads((WEB / "texts" / f"{name}.json").read_text(encoding="utf-8")) for name in ("en", "ja", "zh")}
    holes = {name: {key: sorted(_holes(text)) for key, text in table.items()} for name, table in texts.items()}
    assert holes["ja"] == holes["en"] and holes["zh"] == holes["en"]
    scripts = [path for path in WEB.rglob("*.js") if "vendor" not in path.parts]
    code = "".join(path.read_text(encoding="utf-8") for path in scripts)
    made = ["state", "kind", "list.kind", "do", "queue.generation", "how", "chart", "content", "fact", "tab", "settings"]
    assert [key for key in texts["en"] if f'"{key}"' not in code and not key.startswith(tuple(f"{part}." for part in made))] == [], (
        "no script says these"
    )
    assert set(re.findall(r'\bsay\(\s*"([^"]+)"', code)) - set(texts["en"]) == set(), "no table has these"


def test_no_script_says_words_that_no_table_has() -> None:
    settings = json.loads((WEB.parent / "locales" / "en" / "settings.json").read_text(encoding="utf-8"))
    known = {text for one in settings.values() for text in one.values()} | {
        "LoRA under test",
        "/data/clips",
    }  # what a title is marked with; a path
    said = re.compile(r'"([A-Z][A-Za-z]+(?: [a-z]+)+[^"]*)"|(?:\btitle|"aria-label"|placeholder|summary|detail): "([^"]+)"')
    scripts = [path for path in WEB.rglob("*.js") if "vendor" not in path.parts]
    lines = [line for path in scripts for line in path.read_text(encoding="utf-8").splitlines() if not re.match(r"\s*(//|/?\*)", line)]
    found = {one[1] or one[2] for line in lines for one in said.finditer(line)}
    assert found - known == set() and len(found) > 5


def test_what_the_server_says_of_jobs_is_said_in_the_language_of_the_page(tab: Tab) -> None:
    tab.recorded.jobs[0] |= {"phase": "epoch 3 of 40"}
    failed = next(one for one in tab.recorded.jobs if one["id"] == STATES["failed"]["id"])
    failed["error"] = "it was killed by the system, most often because memory ran out\nThe whole log: /home/me/log.txt"
    tab.open("?locale=ja")
    assert tab.text(f"[data-id='{failed['id']}'] .mt-error-line").startswith("システムに強制終了されました")
    assert "エポック 3 / 40" in tab.text(f"[data-id='{STATES['running']['id']}'] .mt-line")
    tab.show("stopped")
    tab.browser.wait("document.querySelector('.mt-how').innerText.includes('ステップ 700 で停止、状態保存済み') ? 1 : 0")
    tab.press("一覧に戻る")
    tab.show("failed")
    tab.browser.wait("document.querySelector('[role=alert]')?.innerText.includes('システムに強制終了されました') ? 1 : 0")
    assert "/home/me/log.txt" in tab.text("[role=alert] pre")


@pytest.mark.parametrize("language", ["ja", "zh"])
def test_a_message_of_the_server_calls_widgets_as_the_nodes_show_them(tab: Tab, language: str) -> None:
    tab.open(f"?locale={language}")
    script = "const { translated } = await import('/extensions/pack/trainings/words.js'); return args[0].map(translated);"
    shown = tab.browser.run(script, [one.english for one in CALLED])
    assert [text for one, text in zip(CALLED, shown, strict=True) if wrong(one, language, text)] == []


def test_templates_are_listed_in_their_order_and_those_of_others_as_they_are(tab: Tab) -> None:
    tab.open()
    listed = tab.browser.run("await import('/extensions/pack/templates.js'); return await window.api.getWorkflowTemplates();")
    assert listed == {"another": ["b", "a"], "pack": ["train_a_lora_start_here", "quickstart", "captioning"]}


def test_a_template_opens_in_the_language_of_the_page_and_what_is_saved_stays(tab: Tab) -> None:
    tab.open("?locale=ja")
    template = json.loads((WEB.parent / "workflows" / "train_a_lora_start_here.json").read_text(encoding="utf-8"))
    opened = (
        "await import('/extensions/pack/templates.js');"
        "const one = window.app.extensions.find(known => known.name === 'MusubiTuner.Templates');"
        "await one.beforeConfigureGraph(args[0], []); return args[0];"
    )
    shown = tab.browser.run(opened, template)
    host, note = shown["nodes"]
    inside = shown["definitions"]["subgraphs"][0]
    groups = [group["title"] for group in inside["groups"]]
    said = [host["title"], note["title"], inside["name"], *groups, *(entry["label"] for entry in host["inputs"] + inside["inputs"])]
    plain = {"VRAM"}
    assert [text for text in said if text not in plain and not re.search("[\u3040-\u9fff]", text)] == []
    assert [group.split()[0] for group in groups] == [f"{number}." for number in range(1, len(groups) + 1)]
    lines = [line for line in note["widgets_values"][0].split("\n") if line and "* models/" not in line]
    assert [line for line in lines if not re.search("[\u3040-\u9fff]", line)] == []
    assert host["widgets_values"] == template["nodes"][0]["widgets_values"] and "musubi_template" not in shown["extra"]
    assert tab.browser.run(opened, shown) == shown
    unmarked = {**template, "extra": {}}
    assert tab.browser.run(opened, unmarked) == unmarked, "somebody has saved it"


def _holes(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)(?::[^|{}]+\|[^|{}]+)?\}", text))
