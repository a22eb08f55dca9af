"""One Wan block on the CPU, forward and checkpointed backward with a LoRA: settings measured in turn, minima, on one thread.

The width is a tenth of Wan 14B's with its proportions, and attention's share of the work follows tokens / width: 3 is a clip of 33 frames
at 480p, 6 one of 81.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from musubi_backend.architectures.wan.geometry import WanGeometry
from musubi_backend.architectures.wan.model import WanTransformer
from musubi_backend.layers.blocks import run_block
from musubi_backend.layers.recompute import Tier

from .gpu_models import Model, Setting, Size, build, latents, wan_call

WIDTH = 512
_SIZES = (Size(256, 256, 21), Size(256, 256, 61))
"""1536 and 4096 tokens."""


def step_of(model: Model, size: Size, tier: Tier) -> Callable[[], None]:
    """A step of the model's first block, on what reaches it in a forward pass."""
    trained = build(model, Setting(), torch.device("cpu"), torch.float32)
    block = trained.model.block_lists()[0][0]  # type: ignore[operator]
    seen: list[tuple[torch.Tensor, ...]] = []
    handle = block.register_forward_pre_hook(lambda _, given: seen.append(given))
    with torch.no_grad():
        trained.loss(*latents(size, trained.device), 0.5)
    handle.remove()
    x, *shared = seen[0]

    def step() -> None:
        out = run_block(block, x.detach().requires_grad_(), *shared, recompute=True, tier=tier)
        out.backward(torch.ones_like(out))

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    model = Model("Wan", "wan", WanGeometry(WIDTH, WIDTH * 27 // 10, 4, 1), WanTransformer, wan_call)
    print("| tokens | tokens / width | attention kept, CPU s | attention computed again, CPU s | ratio |\n|---|---|---|---|---|")
    for size in _SIZES:
        steps = [step_of(model, size, tier) for tier in (Tier.ON_DEVICE, Tier.RECOMPUTED)]
        best = [float("inf")] * len(steps)
        for _ in range(rounds):
            for number, step in enumerate(steps):
                begun = time.process_time()
                step()
                best[number] = min(best[number], time.process_time() - begun)
        frames, height, width = size.latents
        tokens = frames * height * width // 4
        print(f"| {tokens} | {tokens / WIDTH:.0f} | {best[0]:.2f} | {best[1]:.2f} | {best[0] / best[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
