"""What is installed, and what is wrong with it."""

from __future__ import annotations

from typing import Any

from .jobs import config as configuration
from .jobs.follow import run_doctor
from .spec import Host, Input, Node, NodeSpec, Output, Result


class BackendInfo(Node):
    spec = NodeSpec(
        id="MusubiTuner_BackendInfo",
        display_name="Backend Info",
        category="MusubiTuner/System",
        description="Versions, GPU, engine, folders, and what is wrong with the installation: the report of `python install.py --doctor`.",
        inputs=(Input("refresh", "INT", "Enter another number to look again.", default=0, minimum=0, maximum=2**31 - 1),),
        outputs=(Output("report", "STRING", "The report"),),
        is_output=True,
    )

    def fingerprint(self, host: Host, **constants: Any) -> str:
        return str(configuration.load(host.home))

    async def run(self, host: Host, **inputs: Any) -> Result:
        settings = configuration.load(host.home)
        roots = "\n".join(f"  {root}" for root in host.allowed_roots())
        facts, verdict = _parts((await run_doctor(host)).strip().splitlines())
        places = f"home: {settings.home}\nengine: {settings.engine}\nfolders that paths may lie in:\n{roots}"
        report = "\n\n".join(["\n".join(verdict), places, "\n".join(facts)]).strip()
        return Result((report,), text=report, line=verdict[0].rstrip(":") if verdict else "the report is empty")


def _parts(doctor: list[str]) -> tuple[list[str], list[str]]:
    """The doctor's report: what it saw; and the line that says how much is wrong, with the problems that follow it."""
    place = next((place for place in reversed(range(len(doctor))) if not doctor[place].startswith("- ")), 0)
    return doctor[:place], doctor[place:]
