"""Writes each node's help page and the English names from its specification: `python nodes/help_pages.py`.

ComfyUI shows `web/docs/<NodeId>.md` in its help panel and reads `locales/en/nodeDefs.json`; `web/task_inputs.js` hides by
`web/task_inputs.json` what the chosen task does not take. A test fails when they are out of date.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def page(spec: Any) -> str:
    """The help page of one node."""
    lines = [f"# {spec.display_name}", "", spec.description, ""]
    widgets = [entry for entry in spec.inputs if entry.is_widget]
    sockets = [entry for entry in spec.inputs if not entry.is_widget]
    if sockets:
        lines += ["## Inputs", "", "| input | what |", "|---|---|"]
        lines += [f"| `{entry.name}`{' (optional)' if entry.optional else ''} | {_cell(entry.tooltip)} |" for entry in sockets] + [""]
    if widgets:
        lines += ["## Settings", "", "| setting | default | what |", "|---|---|---|"]
        lines += [f"| `{entry.name}` | {_default(entry)} | {_cell(entry.tooltip)}{_flag(entry)} |" for entry in widgets] + [""]
    if spec.outputs:
        lines += ["## Outputs", "", "| output | what |", "|---|---|"]
        lines += [f"| `{output.name}` | {_cell(output.tooltip)} |" for output in spec.outputs] + [""]
    return "\n".join(lines)


def english_names(specs: list[Any]) -> dict[str, Any]:
    """The content of `nodeDefs.json`."""
    return {
        spec.id: {
            "display_name": spec.display_name,
            "description": spec.description,
            "inputs": {entry.name: {"name": entry.name, "tooltip": entry.tooltip} for entry in spec.inputs},
            "outputs": {str(index): {"name": output.name, "tooltip": output.tooltip} for index, output in enumerate(spec.outputs)},
        }
        for spec in specs
    }


def texts(specs: list[Any]) -> dict[Path, str]:
    """file -> its text, for everything that is generated."""
    files = {ROOT / "web" / "docs" / f"{spec.id}.md": page(spec) for spec in specs}
    files[ROOT / "locales" / "en" / "nodeDefs.json"] = json.dumps(english_names(specs), ensure_ascii=False, indent=1) + "\n"
    files[ROOT / "web" / "task_inputs.json"] = json.dumps(task_inputs(specs), indent=1) + "\n"
    return files


def task_inputs(specs: list[Any]) -> dict[str, dict[str, dict[str, list[str]]]]:
    """node -> input -> {Model Paths node: the tasks that take it, empty: all}, for inputs that not all of these take."""
    nodes = [spec.id for spec in specs if spec.id.endswith("ModelPaths")]
    found = {
        spec.id: {
            entry.name: {node: list(entry.tasks) for node in nodes if spec.id.startswith(node.removesuffix("ModelPaths"))}
            if entry.tasks
            else {f"MusubiTuner_{family}ModelPaths": list(tasks) for family, tasks in entry.takers.items()}
            for entry in spec.inputs
            if entry.tasks or entry.takers
        }
        for spec in specs
    }
    return {node: inputs for node, inputs in found.items() if inputs}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _default(entry: Any) -> str:
    if entry.default in (None, ""):
        return ""
    return _cell({True: "on", False: "off"}[entry.default] if isinstance(entry.default, bool) else f"{entry.default}")


def _flag(entry: Any) -> str:
    return f" (`--{entry.option}`)" if entry.option and entry.option != entry.name else ""


def main() -> None:
    runpy.run_path(str(ROOT / "headless" / "__main__.py"))["load_pack"]()
    nodes = sys.modules["musubituner_pack.nodes.catalog"].NODES
    for path, text in texts([node.spec for node in nodes]).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
