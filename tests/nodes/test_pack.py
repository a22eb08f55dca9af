"""The pack as a whole: quick to import without ComfyUI or torch; help, names and workflows follow from the nodes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def test_importing_the_pack_brings_only_the_standard_library() -> None:
    code = (
        "import importlib, importlib.util, json, sys\n"
        "before = set(sys.modules)\n"
        f"spec = importlib.util.spec_from_file_location('some_pack', {str(ROOT / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(ROOT)!r}])\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['some_pack'] = module; spec.loader.exec_module(module)\n"
        "importlib.import_module('some_pack.nodes.catalog')\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(json.loads(said)) - sys.stdlib_module_names == {"some_pack"}


def test_only_the_runner_starts_processes_and_only_the_host_bridge_imports_comfyui() -> None:
    for path in [*(ROOT / "nodes").rglob("*.py"), *(ROOT / "headless").rglob("*.py"), ROOT / "__init__.py"]:
        text = path.read_text(encoding="utf-8")
        if path.name != "runner.py":
            assert "create_subprocess" not in text and "Popen" not in text and "subprocess.run" not in text, path
        if path.name not in ("comfy.py", "comfy_host.py"):
            assert "comfy_api" not in text and "import folder_paths" not in text, path


def test_every_node_explains_itself(part: Any) -> None:
    for node in part("nodes.catalog").NODES:
        spec = node.spec
        assert spec.id.startswith("MusubiTuner_")
        assert spec.category.startswith("MusubiTuner/")
        assert len(spec.description) > 40
        names = [entry.name for entry in spec.inputs]
        assert len(names) == len(set(names))
        assert all(len(entry.tooltip) > 5 for entry in spec.inputs), spec.id
        optional = [entry.optional for entry in spec.inputs if entry.is_widget]
        assert optional == sorted(optional), f"{spec.id}: ComfyUI's page puts optional widgets last, so saved values would land in others"
        for entry in spec.inputs:
            if entry.kind in ("INT", "FLOAT"):
                assert entry.lowest is not None and entry.maximum is not None, f"{spec.id}.{entry.name}"
                assert entry.lowest <= entry.default <= entry.maximum, f"{spec.id}.{entry.name}"


def test_help_pages_and_english_names_are_up_to_date(part: Any) -> None:
    specs = [node.spec for node in part("nodes.catalog").NODES]
    for path, text in part("nodes.help_pages").texts(specs, part("nodes.optimizer_settings").for_the_page()).items():
        assert path.read_text(encoding="utf-8") == text, f"run: python nodes/help_pages.py ({path.name})"


def test_translations_name_what_exists(part: Any) -> None:
    specs = {node.spec.id: node.spec for node in part("nodes.catalog").NODES}
    for language in ("ja", "zh"):
        names = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
        assert set(names) == set(specs)
        for node_id, entry in names.items():
            assert set(entry["inputs"]) <= {one.name for one in specs[node_id].inputs}, node_id
            assert len(entry["outputs"]) == len(specs[node_id].outputs), node_id


def test_what_the_page_says_of_optimizers_is_translated(part: Any) -> None:
    table = part("nodes.optimizer_settings").for_the_page()
    said = {text for entry in table.values() for text in (entry["help"], entry["rate"], *(one["help"] for one in entry["arguments"]))}
    for language in ("ja", "zh"):
        translated = json.loads((ROOT / "locales" / language / "optimizers.json").read_text(encoding="utf-8"))
        missing = said - set(translated)  # a few new ones may be in English
        assert len(missing) <= 0.05 * len(said), f"locales/{language}/optimizers.json lacks {sorted(missing)}"
        page = json.loads((ROOT / "web" / "optimizers" / f"{language}.json").read_text(encoding="utf-8"))
        assert page["adamw"]["help"] == translated[table["adamw"]["help"]]
        assert {entry["group"] for entry in page.values()} == {translated[entry["group"]] for entry in table.values()}


def test_example_workflows_are_up_to_date(part: Any) -> None:
    texts = part("workflows.files").texts()
    assert {path.name for path in texts} == {path.name for path in (ROOT / "workflows").glob("*.json")} | {"order.json"}
    for path, text in texts.items():
        assert path.read_text(encoding="utf-8") == text, f"run: python workflows/generate.py ({path.name})"


def test_links_of_the_example_workflows_fit(part: Any) -> None:
    for path in (ROOT / "workflows").glob("*.json"):
        steps = part("headless.workflow").read(path)
        for step in steps.values():
            for name, (source, slot) in step.links.items():
                given, wanted = steps[source].node.spec.outputs[slot].kind, step.node.spec.input(name).kind
                assert given == wanted or given == "*", f"{path.name}: {step.title}.{name}"


def test_what_pages_add_to_a_node_has_the_name_of_none_of_its_inputs(part: Any) -> None:
    scripts = [path.read_text(encoding="utf-8") for path in (ROOT / "web").rglob("*.js") if "vendor" not in path.parts]
    added = set(re.findall(r'addDOMWidget\("(\w+)"', "".join(scripts)))
    inputs = {entry.name for node in part("nodes.catalog").NODES for entry in node.spec.inputs}
    assert len(added) >= 4 and added & inputs == set(), "Nodes 2.0 shows one of two that are called alike"
