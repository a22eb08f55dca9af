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
        doctor = (await run_doctor(host)).strip()
        report = f"home: {settings.home}\nengine: {settings.engine}\nfolders that paths may lie in:\n{roots}\n\n{doctor}"
        return Result((report,), text=report, line=_verdict(doctor))


def _verdict(doctor: str) -> str:
    """The line of the doctor's report that says how much is wrong, which its problems follow."""
    lines = [line for line in doctor.splitlines() if not line.startswith("- ")]
    return lines[-1].rstrip(":") if lines else "the report is empty"
