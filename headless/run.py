"""Runs the steps of a workflow: checks first, then each node once what it needs is there, reusing results that still hold."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..backend.musubi_backend import content
from ..backend.musubi_backend.atomic import write_text
from ..backend.musubi_backend.console import setup_streams as setup_streams
from ..backend.musubi_backend.documents import json_text, read_json
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.place import in_words
from ..nodes.checks import check, complete, prechecked, prepared
from ..nodes.jobs.config import default_home
from ..nodes.reuse import widget_values
from ..nodes.spec import NotYet, Result, with_warnings
from .demo import prepare
from .terminal import CtrlC, Screen, TerminalHost
from .workflow import Step, order, override, read

EXIT_FAILED, EXIT_WRONG, EXIT_STOPPED = 1, 2, 130
_KEPT_RESULTS = 200
_FORMAT = 2  # of the entries in the store


def run_file(
    workflow: Path, settings: list[str], models: Sequence[Path], home: Path | None, *, fresh: bool = False, demo: bool = False
) -> int:
    """Run a workflow file; returns the exit code and prints what the user should know. demo: on tiny models, see `headless.demo`."""
    screen = Screen(sys.stdout)
    host = TerminalHost((home or default_home()).absolute(), models, screen)
    try:
        steps = read(workflow)
        if demo:
            asyncio.run(prepare(steps, host))
        override(steps, settings)
        if fresh:
            _renew(steps)
        _check(order(steps), host)
    except UserError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return EXIT_WRONG
    try:
        failed = asyncio.run(_until_ctrl_c(run(steps, host, fresh=fresh), host.ctrl_c))
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.line("Stopped. Run it again to continue from where it was.")
        return EXIT_STOPPED
    return EXIT_FAILED if failed else 0


async def _until_ctrl_c(work: Coroutine[Any, Any, int], ctrl_c: CtrlC) -> int:
    """Ctrl-C cancels the work, which stops its jobs and waits until they have saved; once more, and the jobs' nodes end them at once."""
    task = asyncio.ensure_future(work)
    with ctrl_c.calling(task.cancel):
        return await task


async def run(steps: Mapping[str, Step], host: TerminalHost, *, fresh: bool = False) -> int:
    """Run all steps; independent ones at the same time. Returns the number of steps that failed."""
    outcomes = await _Workflow(steps, host, fresh).run()
    failed = 0
    for step, outcome in zip(order(steps), outcomes, strict=True):
        if isinstance(outcome, (UserError, OSError)):
            failed += 1
            host.screen.line(f"ERROR in {step.title}: {in_words(outcome) if isinstance(outcome, OSError) else outcome}")
        elif isinstance(outcome, _Skipped):
            host.screen.line(f"{step.title}: not run, because {outcome}")
        elif isinstance(outcome, BaseException):
            raise outcome
    return failed


class _Skipped(Exception):
    """A node it needs failed."""


def _late(step: Step) -> set[str]:
    """The linked inputs of a step that are made only after its precheck."""
    return {entry.name for entry in step.node.spec.inputs if entry.late} & set(step.links)


def _ancestors(step: Step, steps: Mapping[str, Step], inputs: Collection[str]) -> set[str]:
    """The steps that some inputs of a step need, directly or not."""
    sources = {steps[step.links[name][0]].id for name in inputs}
    return sources.union(*(_ancestors(steps[source], steps, steps[source].links) for source in sources))


def _at_once(step: Step, steps: Mapping[str, Step]) -> set[str]:
    """The steps that a step needs with no late input between."""
    sources = {source for name, (source, _) in step.links.items() if name not in _late(step)}
    return sources.union(*(_at_once(steps[source], steps) for source in sources))


def _made_late_for(step: Step, steps: Mapping[str, Step]) -> list[str]:
    """The steps that need this one through late inputs, if nothing needs it at once."""
    late = {one.id: _late(one) for one in steps.values()}
    behind = {one: _ancestors(steps[one], steps, names) for one, names in late.items()}
    only_behind, at_once = set().union(*behind.values()), set[str]()
    for one, names in late.items():
        if names:  # its check waits for these, whatever they need
            at_once |= _ancestors(steps[one], steps, set(steps[one].links) - names)
        elif one not in only_behind:
            at_once |= _at_once(steps[one], steps)
    return [one for one, ancestors in behind.items() if step.id in ancestors - at_once]


class _Workflow:
    """The steps of a workflow while they run: a task for each, and one for each check of what comes before a late input."""

    def __init__(self, steps: Mapping[str, Step], host: TerminalHost, fresh: bool) -> None:
        self.steps, self.host, self.fresh = steps, host, fresh
        self.store = ResultStore(host.home)
        self.tasks: dict[str, asyncio.Task[tuple[str, Result]]] = {}
        self.checks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> Sequence[object]:
        """What each step gave or ended with, in order. Where this is cancelled, all are, and have ended."""
        self.checks = {step.id: asyncio.create_task(self._precheck(step)) for step in self.steps.values() if _late(step)}
        self.tasks = {step.id: asyncio.create_task(self._step(step)) for step in order(self.steps)}
        try:
            return await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        except asyncio.CancelledError:
            for task in (*self.tasks.values(), *self.checks.values()):
                task.cancel()
            await asyncio.gather(*self.tasks.values(), *self.checks.values(), return_exceptions=True)  # their jobs end first
            raise

    async def _precheck(self, step: Step) -> None:
        """The step's check of the inputs that are not made late; of lists, of the first item. UserError or `_Skipped` where it does not
        pass."""
        late, lists, inputs = _late(step), lists_of(step, self.steps), dict(step.constants)
        for name, (source, slot) in step.links.items():
            if name not in late:
                value = (await self._source(name, source))[1].values[slot]
                inputs[name] = next(iter(value), None) if name in lists else value
        prechecked(step.node, self.host.named(step.title), inputs)

    async def _source(self, name: str, source: str) -> tuple[str, Result]:
        try:
            return await self.tasks[source]
        except (UserError, _Skipped) as error:
            raise _Skipped(f"node {source} did not give its {name}") from error

    async def _step(self, step: Step) -> tuple[str, Result]:
        """Run a step, or find its result of an earlier run: what it is stored under, and the result."""
        if step.id in self.checks:
            await self.checks[step.id]
        late_for = [self.checks[consumer] for consumer in _made_late_for(step, self.steps)]
        refused = [outcome for outcome in await asyncio.gather(*late_for, return_exceptions=True) if outcome is not None]
        if late_for and len(refused) == len(late_for):
            raise _Skipped("what it is for was rejected")
        inputs, sources = dict(step.constants), {}
        for name, (source, slot) in step.links.items():
            key, result = await self._source(name, source)
            inputs[name], sources[name] = result.values[slot], f"{key}:{slot}"
            if isinstance(inputs[name], NotYet):
                raise _Skipped(inputs[name].why)
        host = self.host.named(step.title)
        values = _prepared(step, self.steps, host, inputs)
        calls = _calls(step, self.steps, values)
        constants = {name: value for name, value in values.items() if name not in sources}
        key = _key(step.node.spec.id, constants, sources, [step.node.fingerprint(host, **widget_values(step.node, one)) for one in calls])
        known = None if self.fresh else self.store.get(key)
        if known is not None:
            host.screen.line(f"{step.title}  nothing changed, kept: {known.text}".rstrip(": "))
            return key, known
        result = await _run(step, host, calls, as_lists=bool(lists_of(step, self.steps)))
        if not any(isinstance(value, NotYet) for value in result.values):
            self.store.put(key, result)
        host.screen.line(f"{step.title}  {result.text or 'done'}")
        return key, result


def _prepared(step: Step, steps: Mapping[str, Step], host: TerminalHost, inputs: dict[str, Any]) -> dict[str, Any]:
    """As `prepared`; of lists, the first item is checked."""
    lists = {name: inputs[name] for name in lists_of(step, steps)}
    if any(not items for items in lists.values()):
        raise UserError(f"{step.node.spec.display_name}: {' and '.join(sorted(lists))} got an empty list")
    return {**prepared(step.node, host, {**inputs, **{name: items[0] for name, items in lists.items()}}), **lists}


def _calls(step: Step, steps: Mapping[str, Step], values: dict[str, Any]) -> list[dict[str, Any]]:
    """The inputs of one run, or as in ComfyUI of one run per item of the lists that come over its links; the last item of a short list
    repeats."""
    lists = {name: values[name] for name in lists_of(step, steps)}
    count = max(map(len, lists.values()), default=1)
    return [{**values, **{name: items[min(index, len(items) - 1)] for name, items in lists.items()}} for index in range(count)]


async def _run(step: Step, host: TerminalHost, calls: Sequence[dict[str, Any]], *, as_lists: bool) -> Result:
    """Run the node as often as it is called. as_lists: the values of all calls become one list per output."""
    results = [await step.node.run(host, **inputs) for inputs in calls]
    text = with_warnings("\n".join(result.text for result in results if result.text), host.warnings)
    if not as_lists:
        return replace(results[0], text=text)
    return Result(
        tuple(list(one) for one in zip(*(result.values for result in results), strict=True)),
        text,
        tuple(path for result in results for path in result.shown),
        tuple(path for result in results for path in result.files),
    )


def lists_of(step: Step, steps: Mapping[str, Step]) -> set[str]:
    """The inputs of a step that get lists whose items are to be taken one by one."""
    if any(entry.many for entry in step.node.spec.inputs):
        return set()
    sources = {name: steps[source] for name, (source, _) in step.links.items()}
    return {name for name, source in sources.items() if source.node.spec.outputs[step.links[name][1]].many or lists_of(source, steps)}


class ResultStore:
    """Results of earlier runs in `<home>/headless_cache.json`. A result counts while all its files are as it left them."""

    def __init__(self, home: Path) -> None:
        self._path = home / "headless_cache.json"
        self._entries: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is damaged: nothing is lost but the reuse
            self._entries = read_json(self._path, dict, paths=True)

    def get(self, key: str) -> Result | None:
        entry = self._entries.get(key)
        try:
            if entry is None or not all(map(content.is_as_stamped, entry["stamps"])):
                return None
            files = tuple(Path(stamp[0]) for stamp in entry["stamps"])
            return Result(tuple(entry["values"]), str(entry["text"]), tuple(map(Path, entry["shown"])), files)
        except (KeyError, TypeError, ValueError, IndexError):
            return None  # damaged, too

    def put(self, key: str, result: Result) -> None:
        self._entries.pop(key, None)
        self._entries[key] = {
            "values": result.values,
            "text": result.text,
            "shown": [str(path) for path in result.shown],
            "stamps": [content.stamp(path) for path in result.files],
        }
        self._entries = dict(list(self._entries.items())[-_KEPT_RESULTS:])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, json_text(self._entries))


def _renew(steps: Mapping[str, Step]) -> None:
    """Give every training a run of its own."""
    for step in steps.values():
        if any(entry.name == "run_id" for entry in step.node.spec.inputs):
            step.constants["run_id"] = int(time.time())


def _check(steps: Sequence[Step], host: TerminalHost) -> None:
    """Reject bad values of all nodes before anything runs."""
    problems = []
    for step in steps:
        constants = {name: value for name, value in step.constants.items() if name not in step.links}
        placeholders = {name: object() for name in step.links}
        try:
            values = complete(step.node.spec, {**constants, **placeholders})
        except UserError as error:
            problems.append(str(error))
            continue
        given = {name: value for name, value in values.items() if name not in step.links and value is not None}
        problems += [f"{step.title}: {problem.text}" for problem in check(step.node, host, given)]
    if problems:
        raise UserError("\n".join(problems))


def _key(node_id: str, constants: Mapping[str, Any], sources: Mapping[str, str], fingerprints: Sequence[str]) -> str:
    text = json.dumps([_FORMAT, node_id, constants, sources, fingerprints], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]
