"""Starting a second sooner: keep PyTorch's compiler out of a process that compiles nothing.

PyTorch marks some functions (optimizer methods) as not to be compiled. The mark is set when each is first called, and setting it
imports the whole compiler. Setting it beforehand, to what it stands for without a compiler, saves that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer

_MARK = "__dynamo_disable"  # where torch/_compile.py keeps the function it calls in place of the marked one


def leave_compiler_out() -> None:
    """Mark the functions a training calls. Where PyTorch has no such mark, nothing happens and they work as ever."""
    from torch.optim import Optimizer

    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        marked: Any = getattr(getattr(Optimizer, name, None), "__wrapped__", None)
        if marked is not None and not hasattr(marked, _MARK):
            setattr(marked, _MARK, marked)


def lean_adamw() -> type[Optimizer]:
    """torch's AdamW, whose step does not ask the compiler for a graph break first."""
    import torch

    class AdamW(torch.optim.AdamW):
        pass

    plain_step = getattr(torch.optim.AdamW.step, "__wrapped__", None)
    if plain_step is not None:
        AdamW.step = torch.no_grad()(plain_step)  # type: ignore[method-assign]
    AdamW.__module__ = torch.optim.AdamW.__module__  # metadata names the optimizer by its class
    return AdamW
