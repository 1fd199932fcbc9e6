"""Lanes: worker threads that each carry chunks from disk through the arithmetic, in parallel.

A lane owns buffers for one chunk and, on CUDA, a stream; it reads a chunk, moves it to the device,
computes and brings the result back, all in order. Several lanes at a time keep disk, both copy
directions and the arithmetic busy together, with the same code on every device, and no lane's
result depends on another's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import torch
from torch import Tensor

from mergeops.bad_values import NonFiniteInputError
from mergeops.checkpoint.reader import TensorReader
from mergeops.errors import ConfigError
from mergeops.methods.fused import Bits, bits_of

MAX_LANES = 16
_WIDEST = 8

Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """One input of a tensor of the result."""

    reader: int
    """Position among the open readers."""
    tensor: str
    """Its name there."""


@dataclass(frozen=True)
class Chunk:
    """A range of the elements of one tensor of the result, in each of its inputs."""

    parts: tuple[Part, ...]
    """The base first, where there is one."""
    has_base: bool
    start: int
    stop: int

    def cut(self, length: int) -> Iterator[Chunk]:
        """Chunks of at most ``length`` elements, in order."""
        for start in range(self.start, self.stop, length):
            yield dataclasses.replace(self, start=start, stop=min(start + length, self.stop))


class Lane:
    """One worker's buffers and stream.

    Args:
        readers: all inputs.
        parts: how many of them a chunk may have, the same one counted as often as it is read.
        chunk: largest number of elements at a time.
        compute: dtype of the arithmetic.
        device: where it is done.
    """

    def __init__(
        self,
        readers: Sequence[TensorReader],
        parts: int,
        chunk: int,
        compute: torch.dtype,
        device: torch.device,
    ) -> None:
        self._readers = readers
        self._device = device
        on_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]
        # One allocation, so that kernels find the rows of all inputs in it.
        self._staging = torch.empty(parts, chunk * _WIDEST, dtype=torch.uint8, pin_memory=on_cuda)
        self._inputs = torch.empty(parts, chunk, dtype=compute, device=device)

    def stream(self) -> contextlib.AbstractContextManager[object]:
        """Makes the lane's stream the current one."""
        return torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()

    def wait(self) -> None:
        """Wait until the device has done everything that this lane asked for."""
        if self._stream is not None:
            self._stream.synchronize()

    def raw(self, chunk: Chunk) -> list[Tensor]:
        """The chunk of each input as stored, on the CPU."""
        return [
            self._readers[part.reader].read(part.tensor, chunk.start, chunk.stop, staging)
            for part, staging in zip(chunk.parts, self._staging, strict=False)
        ]

    def bits(self, chunk: Chunk) -> Bits:
        """The chunk of all inputs as the kernels take it: as stored, where all are stored alike in
        a format that they know; else in the compute dtype, float32 wherever they are used.

        Valid until the lane's next ``bits`` or ``load``.
        """
        raws = self.raw(chunk)
        m = chunk.stop - chunk.start
        rows = self._staging.view(raws[0].dtype)
        as_stored = all(
            raw.dtype == row.dtype and raw.data_ptr() == row.data_ptr()
            for raw, row in zip(raws, rows, strict=False)
        )
        flat = bits_of(rows) if as_stored else None
        if flat is None:
            rows = self._inputs
            for row, raw in zip(rows, raws, strict=False):
                row[:m].copy_(raw)
            flat = bits_of(rows)
            assert flat is not None, f"kernels do not compute in {rows.dtype}"
        return Bits(*flat, rows.shape[1], len(raws), m, chunk.has_base, chunk.start)

    def load(self, chunk: Chunk) -> tuple[Tensor | None, Tensor]:
        """The chunk in the compute dtype on the device: base ``[m]`` or None, sources ``[n, m]``.

        Valid until the lane's next ``load``.
        """
        inputs = self._inputs[: len(chunk.parts), : chunk.stop - chunk.start]
        for row, raw in zip(inputs, self.raw(chunk), strict=True):
            row.copy_(raw.to(self._device, non_blocking=True))
        return (inputs[0], inputs[1:]) if chunk.has_base else (None, inputs)

    def check_finite(self, chunk: Chunk) -> None:
        """Refuse NaN and infinity in what ``load`` gave; waits for the device.

        Raises:
            NonFiniteInputError: with the position of the part.
        """
        inputs = self._inputs[: len(chunk.parts), : chunk.stop - chunk.start]
        # One sum is one quick pass; only where it is not finite, every element is looked at.
        for position, total in enumerate(inputs.sum(dim=1).tolist()):
            if not math.isfinite(total) and not bool(inputs[position].isfinite().all()):
                raise NonFiniteInputError(position)


class Lanes:
    """A set of lanes and the threads that run on them.

    Args:
        make_lane: called once in each thread, with its device.
        devices: lanes take turns with them; no result depends on which.
        count: number of lanes.
    """

    def __init__(
        self,
        make_lane: Callable[[torch.device], Lane],
        devices: Sequence[torch.device],
        count: int,
    ) -> None:
        self._make_lane = make_lane
        self._devices = itertools.cycle(devices)
        self._choosing = threading.Lock()
        self.count = count
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane")
        self._threads_before = torch.get_num_threads()
        # Lanes are the parallelism: a second level inside each operation would only wait. (torch
        # keeps this number per thread, and new threads take the last one that was set.)
        torch.set_num_threads(1)

    @property
    def window(self) -> int:
        """How many jobs are under way at a time."""
        return 2 * self.count

    def run(self, jobs: Iterable[Callable[[Lane], Result]]) -> Iterator[Result]:
        """Every job on some lane, in parallel; results in the order of the jobs.

        At most ``window`` jobs are under way; the next one is made when there is room. An error of
        a job is raised here, after the jobs under way have ended.
        """
        waiting: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                waiting.append(self._pool.submit(self._work, job))
                if len(waiting) >= self.window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            for future in waiting:
                if not future.cancelled():
                    future.exception()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads_before)

    def _work(self, job: Callable[[Lane], Result]) -> Result:
        lane: Lane | None = getattr(self._local, "lane", None)
        if lane is None:
            torch.set_num_threads(1)
            with self._choosing:
                device = next(self._devices)
            lane = self._local.lane = self._make_lane(device)
        with lane.stream():
            return job(lane)


class BufferPool:
    """Host buffers that carry results from the lanes to who writes and hashes them.

    Args:
        count: as many as can be under way; taking one more waits.
        nbytes: size of each.
        pinned: whether a CUDA device copies into them.
    """

    def __init__(self, count: int, nbytes: int, pinned: bool) -> None:
        self._free: queue.LifoQueue[Tensor] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned))

    def take(self) -> Tensor:
        """A free buffer."""
        return self._free.get()

    def give_back(self, buffer: Tensor) -> None:
        """Make a buffer free."""
        self._free.put(buffer)


def choose_devices(name: str) -> tuple[torch.device, ...]:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as devices that are there.

    ``cuda``, and ``auto`` where there is one, are all CUDA devices.

    Raises:
        ConfigError: no such device.
    """
    found = torch.cuda.device_count()
    every = tuple(torch.device("cuda", i) for i in range(found))
    if name == "auto":
        return every or (torch.device("cpu"),)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ConfigError(f"device is {name!r}, but torch sees {found} CUDA device(s); try cpu")
    return every if name == "cuda" else (device,)


def lane_count() -> int:
    """One lane for each processor that this process may use, or as many as OMP_NUM_THREADS says."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    most = int(wanted) if wanted.isdecimal() and int(wanted) else MAX_LANES
    return min(most, MAX_LANES, len(os.sched_getaffinity(0)))
