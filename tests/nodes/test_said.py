"""Every sentence of nodes and routes, collected from the source, is there in every language; no entry is of a sentence that is gone."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SENTENCE = re.compile(r"[A-Za-z][a-z']+[,:;]? (?:\{#?\} )?[a-z]")
_WITH_A_VALUE = re.compile(r"\{#?\}(?=.*(?:^|[ ,;(])[a-z]{3,}(?:$|[ ,;:.)]))|(?:^|[ ,;(])[a-z]{3,} .*\{#?\}", re.DOTALL)
_VALUE, _NUMBER = "Qx7", "7"
_VALUES = (_VALUE, _NUMBER, f"/{_VALUE}")  # in place of {}: a name, a number, a path
_LEAST = 6  # characters of a text that is put together with another one
_ENGLISH = re.compile(r"(?<![\w`-])(?:is|are|not|the|of|cannot|and|give|must|has|have)\b(?![\w`-])")
_NOT_SAID = {  # where sentences stand that are shown elsewhere, or to nobody
    "nodes/help_pages.py": "the help, which has its own table",
    "nodes/jobs/musubi_log.py": "patterns of musubi-tuner's log",
    "nodes/loss_curve.py": "a drawing",
}
_NOT_SENTENCES = {
    "lora training": "what ComfyUI's search finds a node by",
    "mistakes of the node that ComfyUI validates now": "a name of a variable of a context",
    "language of the request that is answered": "a name of a variable of a context",
    "default-src 'none'; sandbox": "a header",
    "Traceback (most recent call last):": "Python's, looked for in a log",
    "out of memory": "PyTorch's, looked for in a log",
    "No space left on device": "the system's, looked for in a log",
    "names this program": "looked for in a report",
    "tensors changed": "looked for in a report",
    "Warning: not all": "looked for in a report",
    "width and height": "two widgets",
    "   strength {}": "a drawing",
    "{} (strength {})": "a prompt, as the gallery calls it",
    "\\g<1> ({} = default).": "of a tooltip",
    "attachment; filename*=UTF-8''{}": "a header",
    **dict.fromkeys(("video folder", "image folder", "as set below"), "a choice of a widget, which workflows hold"),
    **{
        f"{way}: {what}": "a choice of a widget"
        for way in ("beta", "sigma_rel")
        for what in ("general", "converged early", "against overfitting")
    },
    "{} {} is unset by default: say which widget value means that (off=...)": "a mistake in a node's definition, which no widget can cause",
}


def template(node: ast.AST) -> str | None:
    """A text as it is written, with {} for what is put in, {#} for a number with its word; None for what is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or "" if isinstance(part, ast.Constant) else hole(part) for part in node.values)
    return None


def hole(part: ast.AST) -> str:
    """What stands for a value: {}, or for `counted(number, "one", "several")` the words of several."""
    value = getattr(part, "value", part)
    if not isinstance(value, ast.Call) or ast.unparse(value.func) != "counted":
        return "{}"
    words = [template(word) or "{}" for word in value.args[1:]]
    return f"{{#}} {words[1] if len(words) > 1 else words[0] + 's' * (words[0] != '{}')}"


def warning(call: ast.Call) -> Iterator[str]:
    """What `logger.warning` says: a node shows it as a note."""
    said = template(call.args[0])
    if said is not None:
        values = iter(call.args[1:])
        yield re.sub(r"%(?:%|[-.\d]*[a-z])", lambda found: "%" if found[0] == "%%" else hole(next(values)), said)


def filled(text: str, value: str) -> str:
    return text.replace("{#}", _NUMBER).replace("{}", value)


def texts(node: ast.AST) -> Iterator[str]:
    """All texts in a syntax tree but those of docstrings, specifications of nodes and the log. Warnings are shown as notes."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "logger.warning":
        yield from warning(node)
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "counted":
        yield hole(node)
        return
    if isinstance(node, ast.Call) and re.match(r"logger\.|re\.compile|(\w+\.)?(Input|Output|NodeSpec|replace)$", ast.unparse(node.func)):
        return
    found = template(node)
    if found is not None:
        yield found
        for part in getattr(node, "values", []):
            yield from texts(part.value) if isinstance(part, ast.FormattedValue) and hole(part) == "{}" else ()
        return
    for child in ast.iter_child_nodes(node):
        yield from texts(child)


def said_in(folder: str) -> dict[str, str]:
    """Sentences of a folder's modules, and the module of each."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place not in _NOT_SAID:
            found |= {text: place for text in texts(ast.parse(path.read_text(encoding="utf-8"))) if is_said(text)}
    return found


def is_said(text: str) -> bool:
    """Whether somebody could read it: words next to each other, or a word and a value."""
    return bool(_SENTENCE.search(text) or (" " in text and _WITH_A_VALUE.search(text)))


def said_as(translated: Callable[[str, str], str], text: str, language: str) -> str | None:
    """A sentence in a language; None where it stays as it is, whatever is put in."""
    for english in (filled(text, value) for value in _VALUES):
        for one in (english.strip(), english):  # what begins with what stands between sentences is no sentence by itself
            if (said := translated(one, language)) != one:
                return said
    return None


def in_parts(found: Iterable[str]) -> set[str]:
    """Texts that are shown as parts of the sentences in `_PUT_TOGETHER` only."""
    return {text for text in found if any(all(piece in one for piece in re.split(r"\{#?\}", text)) for one in _PUT_TOGETHER)}


@pytest.fixture(scope="module")
def of_nodes(part: Any) -> dict[str, str]:
    """What nodes and routes say, without what the table of names and tooltips has."""
    names, tooltips = part("nodes.help_pages").needed([node.spec for node in part("nodes.catalog").NODES])
    shown = "\n".join([*names, *tooltips])
    return {text: place for text, place in said_in("nodes").items() if not all(piece in shown for piece in re.split(r"\{#?\}", text))}


@pytest.mark.parametrize("language", ["ja", "zh"])
def test_every_sentence_of_the_nodes_is_said_in_every_language(part: Any, of_nodes: dict[str, str], language: str) -> None:
    translated = part("nodes.translations").translated
    assert len(of_nodes) > 200, "they are collected"
    left = {}
    for text in set(of_nodes) - in_parts(of_nodes):
        said = said_as(translated, text, language)
        if text not in _NOT_SENTENCES and (said is None or _ENGLISH.search(re.sub(r"`[^`]*`|<[^>]*>", "", said))):
            left[text] = f"{of_nodes[text]}: {said}"
    assert left == {}
    assert set(_NOT_SENTENCES) - set(of_nodes) == set(), "nobody says these any more"


def spoken(piece: str, code: str) -> bool:
    """Is it in the code, in one text or in two that are put together?"""
    return piece in code or any(piece[:cut] in code and piece[cut:] in code for cut in range(_LEAST, len(piece) - _LEAST + 1))


def test_every_entry_is_of_a_sentence_in_the_code_and_has_its_values() -> None:
    tables = {name: json.loads((ROOT / "web" / "said" / f"{name}.json").read_text(encoding="utf-8")) for name in ("ja", "zh")}
    assert list(tables["ja"]) == list(tables["zh"])
    code = "".join(path.read_text(encoding="utf-8") for part in ("nodes", "backend", "installer") for path in (ROOT / part).rglob("*.py"))
    code = (
        re.sub(r"""["']\s*\n\s*f?["']""", "", code).replace('\\"', '"').replace("\\'", "'").replace("\\\\", "\\")
    )  # a text in several pieces
    quoted = code.replace("'", '"')
    holes = re.compile(r"\{(?P<name>\w+)(?::(?P<one>[^|{}]+)\|[^|{}]+)?\}")
    gone = [text for text in tables["ja"] if not all(spoken(piece, code) for piece in re.split(r"\{[^{}]+\}", text))]
    gone += [text for text in tables["ja"] if not all(hole["one"] is None or f'"{hole["one"]}"' in quoted for hole in holes.finditer(text))]
    assert gone == [], "nobody says these any more"
    for table in tables.values():
        for english, said in table.items():
            assert {hole["name"] for hole in holes.finditer(said)} == {hole["name"] for hole in holes.finditer(english)}, said


def test_every_error_and_warning_of_the_backend_is_said_in_every_language(part: Any) -> None:
    translated = part("nodes.translations").translated
    raised, warned = set[str](), set[str]()
    for path in (ROOT / "backend" / "musubi_backend").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None and ast.unparse(node.exc).startswith("UserError("):
                raised |= {text for text in texts(node.exc) if is_said(text)}
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "logger.warning":
                warned |= {text for text in warning(node) if is_said(text)}
    assert len(raised) > 250 and len(warned) > 45, "they are collected"
    told = (raised | warned) - in_parts(raised | warned)
    assert sorted(text for text in told if not all(said_as(translated, text, language) for language in ("ja", "zh"))) == []


_TOLD_ELSEWHERE = {  # parts of paths of modules whose texts nobody sees in ComfyUI, or in another way
    "options/(tables|describe|document|former|parser|registry)|architectures/(.+/(options|nodes|templates)|widgets)": "tables of tooltips",
    "optimizers/(table/|entry|pairing|reports|hina)": "optimizers, which have a table of their own",
    r"kinds\.|card\.|(lora|layer)_names|token_files|recognise|shapes\.|layouts\.": "names of models and of their files",
    "/demo|show_timesteps|preview|installer/(?!doctor|settings_rules)|__main__|lora_post_hoc_ema|/sheet": "a terminal, or a drawing",
    "/layers/|memory/(fp8|streaming|compiling)|lora/(run_)?network|training/(built|train|loop|trackers|distributed|validation)": "the log",
    "encoders/(llama|qwen_vl)|architectures/(protocol|__init__)|training/samples": "what a model reads, or names of values",
}
_NEVER_TOLD = """\
No space left|clean frames
this model is guidance-distilled: it needs the embedded guidance|looked at when the file was read|an object { }
out of memory|can't allocate memory|no kernel image is available|Interactive mode. Enter prompts (Ctrl+D or Ctrl+Z (Windows) to exit):
frames, height, width|height, width|guidance needs the encoded negative prompt|no settings of {}: {}
optimizer step|dict[str, list[tuple[str, LoRAWeights, float]]]|removing old checkpoint: {}|only shapes are looked at here
one dry step|made tensors of|Average key norm
what a model is given has a shape|no plain tensor, its strides are {}|only what can be done is begun|--optimizer_args relative_step=False
--lr_scheduler {}, --lr_warmup_steps {}|; a step takes about {} s ({})|checked before training|Tensor | tuple[Path, str, TensorInfo]
{}: {} bytes were made for {} {}|{} {}, {}; this python {}|, compute capability {}.{}|no folder|as the work gains|{} {} instead of {}
up to {#} {}|latents {}|{} ({} bytes)
 ({} noise)
{} is {}, expected {}|start {}|roll call|beat {}"""
"""What is logged, printed, compared, drawn, or is a mistake in the program."""
_PUT_TOGETHER = (  # sentences of several texts, as they are shown
    "the names of its caches would be 3 bytes too long; give it a shorter name",
    "the paths of its caches would be 3 bytes too long; give it a shorter name, or cache_directory a shorter path",
    "the path is 3 characters too long, 259 are allowed; choose shorter names, or allow long paths in Windows",
    "unknown key 'fps': it exists, but not in an image dataset; move it to the dataset it belongs to, or remove it",
    "unknown key 'fsp'; did you mean 'fps'?",
    "unknown key 'x'; known here: fps",
    "no item of x.toml can be used. /a.mp4: the file is empty (and 2 more)",
    "--optimizer_args foo: Came has no such argument; it takes betas; the whole class is --optimizer_type came_pytorch.CAME",
    "--rank must be a whole number, not 'x'".removeprefix("--rank "),
    "these LoRAs are for different models: a.safetensors, b.safetensors. Wan, HunyuanVideo go together with --architecture",
    "converted: 3 layers to 6 tensors, named as ComfyUI's",
    "left: 2 tensors kept as they are (a, b)",
    "left: 2 tensors left out (a, b)",
    "names this program does not know, kept: 2 layers (a, b)",
    "page 1 of 2, 30 items, 2 not usable",
    "--resume /s is damaged: model.safetensors is missing",
    "--resume /s is damaged: model.safetensors has 3 of 5 bytes",
    "--resume /s is damaged: model.safetensors does not hold what was written",
    "the learning rate is 0 all along (10 steps): with --lr_scheduler x, --lr_warmup_steps 10 nothing would be trained. "
    "Train longer, shorten the warm-up or choose another schedule",
    "the learning rate of one group of weights is 0 all along (10 steps): with --lr_scheduler_type x "
    "nothing would be trained. Train longer, shorten the warm-up or choose another schedule",
    "this training needs 15.8 GB of 13.6 GB: weights 6.9 · LoRA and optimizer 4.1 · kept for backward 2.0 · "
    "one block at work 1.0 · VAE and image encoder 1.0 · "
    "driver and libraries 1.0. It would fit with --fp8_base (9.3 GB), which --vram auto chooses",
    "looking, 3 s left",
    "/m/x.safetensors does not fit this model. Tensors 3 missing: a, b, c; 1 not part of the model: z",
    "/d/a.mp4: too short: 3 frames, the smallest of target_frames is 5",
    "--lr_scheduler consine is unknown (did you mean 'cosine'?); known: cosine",
    "1  a.mp4: 64x48 to 64x48, 5 frames, trained: 0-4; too short for 9",
    "--base_weights takes up to 3 files, not 4",
    "--latent_path takes one file, not 2",
    "3 of 4 prompts made a video, 1 failed",
    "1 of 1 prompt made an image",
    "no prompt made an image.",
    "1 video of 1 checkpoint",
    "6 videos of 3 checkpoints, 1 failed",
    "2 masks for 3 control images; give at most one for each",
    'one-frame settings "1" name 2 control positions for 3 control images',
    "2 frames are too few for a sample: FramePack needs at least 5 (--f)",
    "step 100, strength 0.8: a cat",
    "1 dataset: 2 images, 1 video, 3 windows, 1 not usable",
    "found 2 images",
    "found 1 video",
    "2 videos · 64x64",
    "1 frame of 64x64",
    "5 frames of 64x64, 16 per second",
    "step 5 of 10 · epoch 1 of 2",
    "cat · loss 0.1 · step 5/10 · running",
    "1.25 s per step · 2 min left",
    "/m holds a, b and 3 more",
    "3 keys missing from the LoRA file, such as a",
    "1 key surplus in the LoRA file, such as a",
    "--resume: --learning_rate 0.1 of the state is kept; 0.2 is not used; --resume_learning_rate changes it",
    "--resume: --max_grad_norm was 1 when the state was saved and is 2 now; it is used from here on, "
    "so the continued run differs from an uninterrupted one",
    "2 left out:\n  /a: the file is empty",
    "Nothing was cached. Fix or remove them and run again, or set --on_bad_items skip.",
)


def test_everything_that_tools_tell_is_said_in_every_language(part: Any) -> None:
    translated = part("nodes.translations").translated
    elsewhere, never = re.compile("|".join(_TOLD_ELSEWHERE)), {*re.split(r"\n|\|(?! )", _NEVER_TOLD), "\nExiting interactive mode"}
    told = {text: place for folder in ("backend", "installer") for text, place in said_in(folder).items() if not elsewhere.search(place)}
    assert len(told) > 700, "they are collected"
    for language in ("ja", "zh"):
        for sentence in _PUT_TOGETHER:
            said = translated(sentence, language)
            assert not _ENGLISH.search(said) and not re.search("[\u3040-\u9fff][.;] | （", said), said
    told = {text: told[text] for text in told.keys() - in_parts(told) - never}
    left = {text: place for text, place in told.items() if not all(said_as(translated, text, language) for language in ("ja", "zh"))}
    assert left == {}


_THE_SAME = {
    *("Loss", "loss", "loss {loss}", "GPU", "LoRA", "TensorBoard", "MusubiTuner", "Cautious AdamW.", "VAE", "fp8", "fps"),
    *("beta", "beta2", "sigma_rel"),
}


def pairs(english: Any, said: Any) -> Iterator[tuple[str, str]]:
    """The texts of two tables of one form."""
    if isinstance(english, dict):
        for key in english.keys() & said.keys():
            yield from pairs(english[key], said[key])
    else:
        yield english, said


@pytest.mark.parametrize("language", ["ja", "zh"])
def test_no_word_is_left_in_english(language: str) -> None:
    def table(path: str) -> Any:
        return json.loads((ROOT / path).read_text(encoding="utf-8"))

    tables = [(table(f"locales/en/{name}.json"), table(f"locales/{language}/{name}.json")) for name in ("main", "settings")]
    tables.append((table("web/texts/en.json"), table(f"web/texts/{language}.json")))
    for said in (
        table(f"web/said/{language}.json"),
        table(f"locales/{language}/optimizers.json"),
        table(f"locales/{language}/templates.json"),
    ):
        tables.append(({key: key for key in said}, said))
    texts_of = table(f"locales/{language}/texts.json")
    tables += [({key: key for key in part}, part) for part in texts_of.values()]
    assert {english for one, said in tables for english, shown in pairs(one, said) if english == shown} <= _THE_SAME


@pytest.mark.parametrize("language", ["ja", "zh"])
def test_notes_of_templates_call_widgets_and_nodes_as_they_are_shown(language: str) -> None:
    shown = json.loads((ROOT / "locales" / language / "texts.json").read_text(encoding="utf-8"))
    shown = shown["names"] | shown["texts"]
    notes = json.loads((ROOT / "locales" / language / "templates.json").read_text(encoding="utf-8"))
    named = [name for note in notes.values() for name in re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", note.removeprefix("* "))]
    assert len(named) > 40 and [name for name in named if shown.get(name, name) != name] == []
