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
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from mergeops.checkpoint import Bytes, TensorReader, as_tensor, item_size, torch_dtype
from mergeops.engine import memory
from mergeops.engine.bad_values import NonFiniteInputError
from mergeops.engine.devices import is_cuda
from mergeops.engine.memory import host_buffer
from mergeops.kernels import bits_of
from mergeops.lazy_torch import torch
from mergeops.methods import Bits

_WIDEST = 8

Result = TypeVar("Result")


@dataclass(frozen=True)
class InputTensor:
    """One of the tensors that a tensor of the result is made from."""

    reader: int
    """Position among the open readers."""
    tensor: str
    """Its name there."""


@dataclass(frozen=True)
class Chunk:
    """A range of the elements of one tensor of the result, in each of its inputs."""

    parts: tuple[InputTensor, ...]
    """The base first, where there is one."""
    has_base: bool
    start: int
    stop: int

    def cut(self, length: int) -> Iterator[Chunk]:
        """Chunks of at most ``length`` elements, in order."""
        for start in range(self.start, self.stop, length):
            yield dataclasses.replace(self, start=start, stop=min(start + length, self.stop))


class Stored(NamedTuple):
    """An input's part of a chunk."""

    data: Bytes
    dtype: str
    """Safetensors name of the format."""


class Lane:
    """One worker's buffers and stream.

    Args:
        readers: all inputs.
        parts: how many of them a chunk may have, the same one counted as often as it is read.
        chunk: largest number of elements at a time.
        compute: safetensors name of the dtype of the arithmetic.
        device: where it is done: cpu or cuda:N.
        single: told before torch is used.
    """

    def __init__(
        self,
        readers: Sequence[TensorReader],
        parts: int,
        chunk: int,
        compute: str,
        device: str,
        single: SingleThreads,
    ) -> None:
        self._readers = readers
        self._device = device
        self._compute = compute
        self._single = single
        self._stream = torch.cuda.Stream(device) if is_cuda(device) else None  # type: ignore[no-untyped-call]
        # One allocation, so that kernels find the rows of all inputs in it.
        self._staging = host_buffer(parts * chunk * _WIDEST, device).reshape(parts, -1)
        self._shape = (parts, chunk)
        self._tensors: torch.Tensor | None = None
        self._converted: npt.NDArray[np.float32] | None = None

    def stream(self) -> contextlib.AbstractContextManager[object]:
        """Makes the lane's stream the current one."""
        return torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()

    def wait(self) -> None:
        """Wait until the device has done everything that this lane asked for."""
        if self._stream is not None:
            self._stream.synchronize()

    def raw(self, chunk: Chunk) -> list[Stored]:
        """The chunk of each input as stored, on the CPU."""
        raws = []
        for part, staging in zip(chunk.parts, self._staging, strict=False):
            dtype = self._readers[part.reader].read(part.tensor, chunk.start, chunk.stop, staging)
            raws.append(Stored(staging[: (chunk.stop - chunk.start) * item_size(dtype)], dtype))
        return raws

    def bits(self, chunk: Chunk) -> Bits:
        """The chunk of all inputs as the kernels take it: as stored, where all are stored alike in
        a format that they know; else as float32.

        Valid until the lane's next ``bits`` or ``load``.
        """
        if "torch" in sys.modules:
            # What takes the bits may use torch for a part.
            self._single.begin()
        raws = self.raw(chunk)
        m, row, dtype = chunk.stop - chunk.start, self._staging.shape[1], raws[0].dtype
        flat = None
        if all(raw.dtype == dtype for raw in raws):
            flat = bits_of(self._staging.reshape(-1), dtype)
        if flat is None:
            if self._converted is None:
                self._converted = np.empty(self._shape, np.float32)
            for values, raw in zip(self._converted, raws, strict=False):
                _to_float32(raw, values[:m])
            dtype, row = "F32", self._converted.strides[0]
            flat = bits_of(self._converted.reshape(-1).view(np.uint8), dtype)
            assert flat is not None
        entries = row // item_size(dtype)
        return Bits(*flat, entries, len(raws), m, chunk.has_base, chunk.start)

    def load(self, chunk: Chunk) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The chunk in the compute dtype on the device: base ``[m]`` or None, sources ``[n, m]``.

        Valid until the lane's next ``load``.
        """
        if self._stream is None:
            memory.tidy()
        if self._tensors is None:
            self._single.begin()
            compute = torch_dtype(self._compute)
            self._tensors = torch.empty(self._shape, dtype=compute, device=self._device)
        m = chunk.stop - chunk.start
        inputs = self._tensors[: len(chunk.parts), :m]
        for row, raw in zip(inputs, self.raw(chunk), strict=True):
            row.copy_(as_tensor(*raw, m).to(self._device, non_blocking=True))
        return (inputs[0], inputs[1:]) if chunk.has_base else (None, inputs)

    def check_finite(self, chunk: Chunk) -> None:
        """Refuse NaN and infinity in what ``load`` gave; waits for the device.

        Raises:
            NonFiniteInputError: with the position of the part.
        """
        assert self._tensors is not None, "load comes first"
        inputs = self._tensors[: len(chunk.parts), : chunk.stop - chunk.start]
        # One sum is one quick pass; only where it is not finite, every element is looked at.
        for position, total in enumerate(inputs.sum(dim=1).tolist()):
            if not math.isfinite(total) and not bool(inputs[position].isfinite().all()):
                raise NonFiniteInputError(position)


def _to_float32(raw: Stored, out: npt.NDArray[np.float32]) -> None:
    if raw.dtype == "BF16":
        np.left_shift(raw.data.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)
        return
    stored: Any = raw.data.view(
        {"F16": np.float16, "F32": np.float32, "F64": np.float64}[raw.dtype]
    )
    with np.errstate(over="ignore"):
        out[:] = stored


class SingleThreads:
    """Lanes are the parallelism: a second level inside each of torch's operations would only wait.

    torch keeps the number of its threads for each thread, and new threads take the last one that
    was set.
    """

    def __init__(self) -> None:
        self._before: int | None = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """From now on torch works in the calling thread alone."""
        with self._lock:
            if self._before is None:
                self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def end(self) -> None:
        """New threads do as before."""
        if self._before is not None:
            torch.set_num_threads(self._before)


class Lanes:
    """A set of lanes and the threads that run on them.

    Args:
        make_lane: called once in each thread, with its device and what to tell when torch is used.
        devices: lanes take turns with them; no result depends on which.
        count: number of lanes.
    """

    def __init__(
        self,
        make_lane: Callable[[str, SingleThreads], Lane],
        devices: Sequence[str],
        count: int,
    ) -> None:
        self._make_lane = make_lane
        self._devices = itertools.cycle(devices)
        self._on_cuda = is_cuda(devices[0])
        self._choosing = threading.Lock()
        self.count = count
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane")
        self._single = SingleThreads()

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

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._single.end()
        if self._on_cuda:
            # The lanes are gone; whatever runs next, perhaps another process, needs their memory.
            torch.cuda.empty_cache()

    def _work(self, job: Callable[[Lane], Result]) -> Result:
        lane: Lane | None = getattr(self._local, "lane", None)
        if lane is None:
            with self._choosing:
                device = next(self._devices)
            lane = self._local.lane = self._make_lane(device, self._single)
        with lane.stream():
            return job(lane)
