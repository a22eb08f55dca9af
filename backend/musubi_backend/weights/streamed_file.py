"""Writing safetensors files larger than memory: their layout is known first, their tensors are made one by one, in threads.

Several files of the same layout can be written in one pass, so that what is read for one is read for all. A model's hash stands in
front of its tensors: it is written last, over a place of the same length.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from .. import job, place
from ..atomic import replacing
from ..console import Bar
from ..errors import StopRequested, UserError
from ..threads import processors
from .safetensors_file import DTYPE_BITS, PathLike, bytes_of, layout, layout_of

if TYPE_CHECKING:
    from torch import Tensor

Spec = tuple[str, tuple[int, ...]]
"""(safetensors' dtype name, shape)"""

Make = Callable[[str], Sequence[memoryview]]
"""Name of a tensor -> its bytes, once for each file that is written."""

MODEL_HASH, LEGACY_HASH = "sshs_model_hash", "sshs_legacy_hash"
_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000
_AHEAD = 2  # finished tensors that may wait to be written, for each thread


@dataclass(frozen=True)
class Target:
    """One file to write. hashed: its metadata gets (or has renewed) the two hashes of sd-webui-additional-networks."""

    path: Path
    metadata: Mapping[str, str] = field(default_factory=dict)
    hashed: bool = False


def write(targets: Sequence[Target], specs: Mapping[str, Spec], make: Make, description: str = "", threads: int | None = None) -> None:
    """Write all `targets`, each with the tensors `specs`. All of them appear at the end, or none changes.

    threads: how many tensors are made at a time; the processors by default. StopRequested when the job is asked to stop, OSError
    when the disk is full.
    """
    with contextlib.ExitStack() as stack:
        writers = [_Writer(stack.enter_context(_opened(target.path)), target, specs) for target in targets]
        workers = threads or min(4, processors())
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        bar = stack.enter_context(Bar(len(specs), description, unit="tensor"))
        for name, parts in _made(pool, workers, writers[0].names, make):
            if job.stop_requested():
                pool.shutdown(cancel_futures=True)
                raise StopRequested("nothing was written")
            for writer, part in zip(writers, parts, strict=True):
                writer.add(name, part)
            bar.update()
        for writer in writers:
            writer.finish()


def refuse_inputs(outputs: Iterable[PathLike], inputs: Iterable[PathLike], flag: str) -> None:
    """UserError when an output is one of the inputs (also by another name or link), or cannot be written."""
    sources = [Path(path) for path in inputs]
    for output in map(Path, outputs):
        place.try_file(output, flag)
        for source in sources:
            if output.exists() and source.exists() and output.samefile(source):
                raise UserError(f"{flag}: {output} is the input {source}; inputs are never changed, choose another name")


def hashes(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> Hashes:
    """The two hashes of a file to be, to be fed its tensors in the order of `layout_of`."""
    _, header = layout_of(specs, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    return Hashes(len(header))


class Hashes:
    """The sha256 of a file's tensors, and the older one of 64 KB at 1 MiB, both as if the metadata held only its ss_* keys."""

    def __init__(self, start: int) -> None:
        self._position = start
        self._whole = hashlib.sha256()
        self._legacy = hashlib.sha256()

    def update(self, data: memoryview) -> None:
        self._whole.update(data)
        begin = _LEGACY_START - self._position
        self._legacy.update(data[max(0, begin) : max(0, begin + _LEGACY_LENGTH)])
        self._position += len(data)

    def metadata(self) -> dict[str, str]:
        return {MODEL_HASH: self._whole.hexdigest(), LEGACY_HASH: self._legacy.hexdigest()[:8]}


class _Writer:
    def __init__(self, file: IO[bytes], target: Target, specs: Mapping[str, Spec]) -> None:
        self._file, self._target, self._specs = file, target, specs
        self._hashes = hashes(specs, target.metadata) if target.hashed else None
        place = {MODEL_HASH: "0" * 64, LEGACY_HASH: "0" * 8} if target.hashed else {}
        self.names, header = layout_of(specs, {**target.metadata, **place})
        file.write(header)

    def add(self, name: str, data: memoryview) -> None:
        dtype, shape = self._specs[name]
        wanted = DTYPE_BITS[dtype] // 8
        for side in shape:
            wanted *= side
        if len(data) != wanted:
            raise ValueError(f"{name}: {len(data)} bytes were made for {dtype} {list(shape)}")
        self._file.write(data)
        if self._hashes is not None:
            self._hashes.update(data)

    def finish(self) -> None:
        if self._hashes is not None:
            _, header = layout_of(self._specs, {**self._target.metadata, **self._hashes.metadata()})
            self._file.seek(0)
            self._file.write(header)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with replacing(path) as part, part.open("wb") as file:
        yield file


def _made(pool: ThreadPoolExecutor, workers: int, names: Sequence[str], make: Make) -> Iterator[tuple[str, Sequence[memoryview]]]:
    """The tensors in order, a few made ahead."""
    pending: deque[tuple[str, Future[Sequence[memoryview]]]] = deque()
    waiting = iter(names)
    for name in waiting:
        pending.append((name, pool.submit(make, name)))
        if len(pending) >= workers * _AHEAD:
            break
    while pending:
        name, future = pending.popleft()
        yield name, future.result()
        following = next(waiting, None)
        if following is not None:
            pending.append((following, pool.submit(make, following)))


def with_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` plus sshs_model_hash and sshs_legacy_hash.

    Both describe the file as it would be with only the ss_* metadata: the first is the sha256 of the tensor bytes, the second
    of 64 KB at 1 MiB, cut to 8 digits. The tensors are hashed where they lie; nothing is serialised for it.
    """
    names, header = layout(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    hashes = Hashes(len(header))
    for name in names:
        hashes.update(bytes_of(tensors[name]))
    return {**metadata, **hashes.metadata()}
