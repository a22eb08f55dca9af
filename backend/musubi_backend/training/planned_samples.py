"""What samples of a training take on the device: their encoders, the transformer at the largest sample's size, and the VAE that decodes it,
on "meta"."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..cache.forms import FRAMES, HEIGHT, WIDTH
from ..inference.prompts import training_prompts
from ..layers.experts import Experts
from ..memory.equal_tiles import counted_once, seams_of_a_line
from ..memory.few_blocks import FewBlocks
from ..memory.live_bytes import LiveBytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..architectures.protocol import Architecture
    from ..architectures.request import SampleRequest

META = torch.device("meta")
_PIXELS = 3  # channels
_FEW_FRAMES = 4  # of latents; by then a VAE that goes from frame to frame has all that it keeps between them
_FEW_PIXELS = 13  # frames that come to so many latents; of one fewer, `_STEP` less
_STEP = 4
_LATE = 500.0  # a timestep like any other


def largest_request(file: str, architecture: Architecture) -> SampleRequest:
    """Of a file of sample prompts. UserError as when they are read to be made."""
    requests = [prompt.request for prompt in training_prompts(file, architecture)]
    return max(requests, key=lambda request: math.prod(architecture.noise_shape(request)))


def sides(request: SampleRequest, architecture: Architecture, trained: Tensor) -> dict[str, int]:
    """Of the latents that the transformer is given at once: a family of sections makes as many frames as it is trained on.
    trained: main latents of a batch."""
    shape = architecture.noise_shape(request)
    frames = int(trained.shape[2]) if architecture.card.sections and request.one_frame is None else shape[1]
    return {FRAMES: frames, HEIGHT: shape[-2], WIDTH: shape[-1]}


def sampled(architecture: Architecture, transformer: nn.Module, batch: Mapping[str, Any], known: Iterable[Tensor]) -> int:
    """Bytes of a forward pass without gradient at its worst. batch: what the transformer is given of one sample, on "meta"."""
    given = dict(batch)
    noisy = torch.empty_like(given["latents"], dtype=torch.float32)
    working: Any = transformer.at(_LATE) if isinstance(transformer, Experts) else transformer
    count = LiveBytes(META, [*known, noisy])
    few = FewBlocks(working.block_lists(), count)
    with count, torch.no_grad():
        velocity = architecture.predict(transformer, noisy, torch.tensor([_LATE]), given).float()
        torch.add(noisy, velocity)
    return few.result(0).peak


def text_encoders(architecture: Architecture) -> int:
    """Bytes of their weights."""
    count = LiveBytes(META)
    with _new_garbage_only():
        with count:
            encoder = architecture.text_encoder(META)
        gc.collect()
        taken = count.live
        del encoder
    return taken


def images(architecture: Architecture, request: SampleRequest) -> int:
    """Bytes of what encodes the images that a sample starts from, and of its work at its worst; 0 where there is nothing to encode."""
    count = LiveBytes(META)
    with count:
        encoder = architecture.condition_encoder(META)
    if encoder is None:
        return 0

    def peak(frames: int) -> int:
        count.mark()
        with contextlib.suppress(_Decoded), count, _ToRam():
            if not encoder.encode(replace(request, frames=frames)):
                return 0  # it has loaded nothing
        return count.peak

    with _new_garbage_only():
        few = min(request.frames, _FEW_PIXELS)
        last = peak(few)
        if few == request.frames or not last or architecture.card.sections:
            return last
        return last + (request.frames - few) * (last - peak(few - _STEP)) // _STEP


def decoded(architecture: Architecture, request: SampleRequest, trained: Tensor) -> int:
    """Bytes of the VAE and of its work at its worst, which grow with the frames as they do from one number of few to the next."""
    channels, frames, *size = architecture.noise_shape(request)
    if architecture.card.sections and not architecture.settings.values().get("bulk_decode"):
        frames = min(frames, 2 * int(trained.shape[2]) + 1)  # two sections at a time
    few = min(frames, _FEW_FRAMES)
    count = LiveBytes(META)
    with count:
        decoder = architecture.latent_decoder(META)
    tiled = getattr(decoder, "tiled", None)

    def peak(frames: int) -> int:
        gc.collect()  # diffusers' models refer to themselves
        with count:
            latents = torch.empty((channels, frames, *size), device=META)
        count.mark()
        with contextlib.ExitStack() as quick, contextlib.suppress(_Decoded), count, _ToRam():
            if tiled is not None:
                quick.enter_context(counted_once(tiled.decoder, count))
                quick.enter_context(seams_of_a_line(tiled))
            decoder.decode(latents)
        return count.peak

    with _new_garbage_only():
        last = peak(few)
        return last if few == frames else last + (frames - few) * (last - peak(few - 1))


@contextlib.contextmanager
def _new_garbage_only() -> Iterator[None]:
    """Collecting garbage does not look through what is there already: of PyTorch and diffusers that is most of its time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Decoded(Exception):
    """Pixels come to the CPU: the device has done its worst."""


class _ToRam(TorchDispatchMode):
    """Gives copies to the CPU of what has no contents, memory that is never touched."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.ops.aten._to_copy.default or not args[0].is_meta or torch.device(kwargs.get("device") or META).type != "cpu":
            return func(*args, **kwargs)
        if _PIXELS in args[0].shape[-4:-3]:
            raise _Decoded
        return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
