"""Giving memory back between two large models."""

from __future__ import annotations

import gc

import torch


def release(device: torch.device) -> None:
    """Free what nothing refers to any more and what PyTorch keeps for later on `device`.

    Models of transformers and diffusers refer to themselves, so dropping the last name of one frees nothing until garbage is collected.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
