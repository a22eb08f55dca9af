"""`python -m musubi_backend <tool> --flags`: finds the tool, checks its arguments, and only then imports what does the work."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import __version__, architectures, console, device, events, exhausted, imports, job, place, threads
from .architectures import protocol
from .errors import EXIT_STOPPED, EXIT_USER_ERROR, StopRequested, UserError

if TYPE_CHECKING:
    from argparse import Namespace

    from .architectures.card import Card

EXIT_INTERRUPTED = 130
_LORAS = ("lora_weight", "lora_weight_high_noise", "network_weights", "base_weights")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one tool; `argv` is its name and its flags. Returns the exit code: 0 done, 1 an error the user can fix (those of
    files and disks among them), 3 stopped on request with everything saved, 130 interrupted. Any other exception passes through."""
    words = list(sys.argv[1:] if argv is None else argv)
    console.setup_streams()
    try:
        return _in_words(words)
    except BaseException as error:  # passes through: a mistake of ours, or argparse's exit
        finished = isinstance(error, SystemExit) and not error.code
        said = "" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        job.ended(events.FINISHED if finished else events.FAILED, said)
        raise


def _in_words(words: list[str]) -> int:
    """Run it; what a user can cause becomes a line and an exit code."""
    try:
        code = _run(words)
    except UserError as error:
        return _failed(str(error))
    except OSError as error:
        if error.errno is None:
            raise  # a library's, about something else
        return _failed(place.in_words(error))
    except StopRequested as stop:
        job.ended(events.STOPPED, stop.summary)
        print(f"Stopped: {stop}", file=sys.stderr, flush=True)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        job.ended(events.STOPPED)
        print("Interrupted.", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    job.ended(events.FINISHED)
    return code


def _failed(message: str) -> int:
    job.ended(events.FAILED, message)
    print(f"ERROR: {message}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"musubi_backend {__version__}")
        return 0
    console.setup_logging()
    _keep_libraries_quiet()

    from .options.option import GENERATE, TRAIN
    from .options.parser import parse, paths_given
    from .options.registry import tool

    target = tool(words[0])
    args = parse(target.name, words[1:])
    threads.prepare(target.verb, threads.ThreadSettings.read(args), paths_given(target, args))
    if target.verb in (TRAIN, GENERATE):
        device.let_memory_grow()
    job.watch_for_stop()
    card = None if target.architecture is None else architectures.chosen_card(target.architecture, vars(args))
    if card is not None:
        _check_models(args, card)
    with imports.large():
        run = importlib.import_module(f".{target.module}", __package__).run
    try:
        if card is None:
            run(args)
        else:
            run(args, protocol.load(card.id).at(card))
    except Exception as error:
        message = exhausted.in_words(error, vars(args))
        if not message:
            raise
        raise UserError(message) from error
    return 0


def _check_models(args: Namespace, card: Card) -> None:
    """All model files are judged by their keys before the first is loaded, and LoRAs by their headers: a wrong VAE is not found out after
    the sampling, a LoRA whose download was cut not after the text encoder."""
    from .weights.recognise import refuse_others
    from .weights.safetensors_file import read_header

    for part in card.parts:
        path = vars(args).get(part.name)
        if path:
            refuse_others(path, part.kinds, f"--{part.name}")
    for name in _LORAS:
        given = vars(args).get(name) or ()
        for path in [given] if isinstance(given, str) else given:
            read_header(path)


def _overview() -> str:
    from .options.registry import tools

    width = max(map(len, tools()))
    lines = [f"  {name:<{width}}  {tool.summary}" for name, tool in tools().items()]
    head = "usage: python -m musubi_backend TOOL --flag value ...\n\nTools (TOOL --help explains one):"
    return "\n".join([head, *lines])


def _keep_libraries_quiet() -> None:
    """No usage reports, no warning about tokenizers in forked workers, no traces of C++ where another process is gone: what a user has set
    stays. Nothing is fetched: models and
    tokenizers are found on this machine, or their absence is said at once."""
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main())
