"""Several processes and machines that train one LoRA: how the transformer is spread over them, and which machine this one is."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..backend.musubi_backend.options.option import TRAIN
from .families import shared_widget
from .jobs.task import Machines
from .spec import Input, Problem

INPUTS = (
    shared_widget(TRAIN, "fsdp", optional=True),
    shared_widget(TRAIN, "fsdp_sharding_strategy", off="FULL_SHARD", optional=True),
    Input("machines", "INT", "Machines that train together, each with as many processes as above. Every one runs this workflow, with "
          "copies of the models, the dataset and its caches. 1: this one alone.",
          default=1, minimum=1, maximum=64, optional=True, advanced=True),
    Input("machine_rank", "INT", "Which of the machines this one is: 0 is the main one, which saves the LoRA; the others count from 1.",
          default=0, minimum=0, maximum=63, optional=True, advanced=True),
    Input("main_process_ip", "STRING", "Address of the main machine in your network, as 192.168.1.20 or a host name; the same on all "
          "machines.", default="", optional=True, advanced=True),
    Input("main_process_port", "INT", "Port on which the main machine waits for the others; its firewall must let them in. The same on all "
          "machines.", default=29500, minimum=1024, maximum=65535, optional=True, advanced=True),
)  # fmt: skip

_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
_NUMBERS = re.compile(r"[\d.]+")


def machines(inputs: Mapping[str, Any]) -> Machines:
    """What the trainer's inputs say."""
    if inputs["machines"] == 1:
        return Machines()
    return Machines(inputs["machines"], inputs["machine_rank"], inputs["main_process_ip"].strip(), inputs["main_process_port"])


def problems(constants: Mapping[str, Any], background: str) -> Iterator[Problem]:
    """What cannot be. constants: of the inputs those that are no links; background: the value of `run` that means it."""
    count, rank, address = constants.get("machines", 1), constants.get("machine_rank", 0), str(constants.get("main_process_ip", "")).strip()
    if constants.get("fsdp") and constants.get("processes", 2) * count < 2:
        yield Problem("fsdp", "fsdp spreads the transformer over several processes, and there is one: raise processes, or turn it off")
    if address and not _is_address(address):
        yield Problem("main_process_ip", f"main_process_ip: {address!r} is no address: enter one like 192.168.1.20, or a host name")
    if count == 1:
        if rank:
            yield Problem("machine_rank", f"machine_rank: {rank} is one of several machines, and machines is 1: set how many, or this to 0")
        return
    if rank >= count:
        yield Problem("machine_rank", f"machine_rank: {rank} is none of {count} machines, which count from 0 to {count - 1}")
    if not address and "main_process_ip" in constants:
        yield Problem("main_process_ip", "main_process_ip is empty: several machines need the address of the main one")
    if constants.get("run") == background:
        yield Problem("run", "a training on several machines runs here, not in the background: its other machines would wait for its turn")


def _is_address(text: str) -> bool:
    if _NUMBERS.fullmatch(text) or ":" in text:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        return not (address.is_unspecified or address.is_multicast)
    return _NAME.fullmatch(text) is not None
