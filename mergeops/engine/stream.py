"""From the inputs' bytes to the result's bytes, tensor after tensor, span by span.

A span is what a lane is given at a time; it goes through it in chunks that suit a processor's
cache. Handing over takes about as long as merging a chunk, so spans are long where a tensor is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any, NamedTuple, Self

import numpy as np

from mergeops import methods
from mergeops.checkpoint import (
    BY_WORD,
    Bytes,
    HashAlong,
    as_tensor,
    item_size,
    read_range,
    torch_dtype,
    word,
)
from mergeops.engine.bad_values import (
    DifferentValuesError,
    NonFiniteInputError,
    NonFiniteResultError,
    check_result,
    unravel,
)
from mergeops.engine.devices import chunk_for, is_cuda
from mergeops.engine.jobs import Job, work_of
from mergeops.engine.lanes import Chunk, Lane, Lanes
from mergeops.engine.measured_inputs import MeasuredInputs
from mergeops.engine.memory import buffer_pool
from mergeops.engine.readers import OpenInputs
from mergeops.errors import MergeError, SourceError
from mergeops.kernels import KERNEL_DTYPES, are_kept
from mergeops.methods import Formula, kernels
from mergeops.planning import Plan, TensorTask

READ_AHEAD = 16
"""Chunks that the system is asked to fetch ahead."""
LONGEST_SPAN = 2
"""Chunks, measured: what waits to be hashed shall still be in a cache. For CUDA a span is one."""
SPANS_PER_LANE = 4
"""At least, where a tensor is long enough: all lanes shall have work to its end."""
LOADING = 1.0
"""Seconds in which kernels that this machine has compiled before are loaded, without torch; while
they are compiled, torch does their work."""
SMALL = 1 << 25
"""Bytes of a result that is written sooner than kernels are compiled."""


MergeChunk = Callable[[Lane, Chunk, Bytes], None]
"""Merges a chunk into the bytes of the result."""


class ResultBytes(NamedTuple):
    """Bytes of the result, which follow those of the piece before."""

    task: TensorTask
    buffer: Bytes
    """``TensorStream.release`` it after use."""
    nbytes: int
    """How many of the buffer's bytes count."""
    offset: int
    """Of the first of them in the tensor."""
    is_last: bool
    """Whether the tensor ends with it."""

    @property
    def data(self) -> memoryview:
        """The bytes that count."""
        return self.buffer[: self.nbytes].data


class TensorStream:
    """The inputs of a plan, open, and the lanes that merge them.

    Args:
        plan: what to do.
        devices: where the arithmetic is done, all of one kind.
        chunk: elements at a time, a multiple of ``BLOCK``; a method that takes whole rows gets
            about as many. None takes what suits the device.
        lanes: parallel spans.
        unhashed: how many finished spans may wait for their reader.
        inputs: stays open after this stream; None opens the plan's own.
        fused: use compiled kernels, which give the same bits. None uses them when they are there:
            where this machine must first compile them, torch begins, and a small merge is done
            before.
        hashes: what hashes the inputs while they are merged.

    Raises:
        SourceError: an input's file is missing or changed.
    """

    def __init__(
        self,
        plan: Plan,
        devices: Sequence[str],
        chunk: int | None,
        lanes: int,
        unhashed: int,
        *,
        inputs: OpenInputs | None = None,
        fused: bool | None = None,
        hashes: HashAlong | None = None,
    ) -> None:
        self._hashes = hashes
        self._seed = plan.seed
        self._compute = compute = BY_WORD[plan.compute]
        self._on_cuda = is_cuda(devices[0])
        self._kernels: Future[bool] | None = None
        if not self._on_cuda and compute == "F32":
            self._kernels = _start_kernels(plan.bytes_to_write, fused)
        self._work = work_of(plan)
        self._method = self._work.method
        self._measured = MeasuredInputs(plan, self._work)
        jobs = self._work.jobs.values()
        most = max(len(job.parts) for job in jobs)
        self._chunk = chunk or chunk_for(most, devices[0], lanes)
        longest = max(self._step(job) for job in jobs)
        with contextlib.ExitStack() as opened:
            inputs = inputs or opened.enter_context(OpenInputs(hashes))
            self._readers = inputs.readers(self._work.inputs, plan.inputs, plan.vocabulary, compute)
            self._lanes = opened.enter_context(
                Lanes(
                    lambda device, single: Lane(
                        self._readers, most, longest, compute, device, single
                    ),
                    devices,
                    lanes,
                )
            )
            # Results come in order, so all that are under way must find a buffer.
            count = self._lanes.window + unhashed + 1
            largest = max(self._length(job) * item_size(job.task.dtype) for job in jobs)
            self._buffers = buffer_pool(count, largest, devices[0])
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def results(self, tasks: Iterable[TensorTask]) -> Iterator[ResultBytes]:
        """The bytes of tensors of the result, in order.

        While the last spans of one are under way the next one begins.

        Raises:
            SourceError: an input changed, cannot be read, or holds NaN or infinity.
            MergeError: the result overflows, or inputs disagree on whole numbers.
        """
        for piece in self._lanes.run(self._spans_of(tasks)):
            if piece.is_last:
                for reader in self._readers:
                    reader.check_unchanged()
            yield piece

    def release(self, buffer: Bytes) -> None:
        """Give back what ``results`` yielded."""
        self._buffers.put(buffer)

    def _spans_of(self, tasks: Iterable[TensorTask]) -> Iterator[Callable[[Lane], ResultBytes]]:
        for task in tasks:
            job = self._work.jobs[task.name]
            with self._explained(job):
                merge = self._copier() if task.kind == "copy" else self._merger(job)
            for span in self._spans(job):
                yield functools.partial(self._merge_span, job, merge, span)

    def _merge_span(self, job: Job, merge: MergeChunk, span: Chunk, lane: Lane) -> ResultBytes:
        size = item_size(job.task.dtype)
        nbytes = (span.stop - span.start) * size
        buffer = self._buffers.get()
        try:
            taking = self._hashes.taking() if self._hashes else contextlib.nullcontext()
            with self._explained(job), taking:
                for chunk in span.cut(self._step(job)):
                    begin, end = ((at - span.start) * size for at in (chunk.start, chunk.stop))
                    merge(lane, chunk, buffer[begin:end])
        except BaseException:
            self._buffers.put(buffer)
            raise
        is_last = span.stop == job.task.numel
        return ResultBytes(job.task, buffer, nbytes, span.start * size, is_last)

    @contextlib.contextmanager
    def _explained(self, job: Job) -> Iterator[None]:
        """Errors of the block with the tensor and the place in it."""
        task = job.task
        try:
            yield
        except NonFiniteInputError as error:
            raise self._describe_input(job, error.position) from error
        except DifferentValuesError as error:
            readers = (job.parts[i].reader for i in (0, error.position))
            first, other = (self._work.inputs[reader].name for reader in readers)
            raise MergeError(
                f"{task.name} holds whole numbers, which are copied, but differs between {first} "
                f"and {other}"
            ) from error
        except NonFiniteResultError as error:
            index = unravel(error.index, task.shape)
            wider = "bfloat16 or float32" if task.dtype == "F16" else "auto, or use smaller weights"
            raise MergeError(
                f"the result of {task.name} at {index} is {error.value:g}, which "
                f"{word(task.dtype)} cannot hold; set dtype.save to {wider}"
            ) from error

    def _merger(self, job: Job) -> MergeChunk:
        task, p = job.task, job.parameters
        keys = self._work.keys(job, self._seed)
        view = dataclasses.replace(job.view, keys=keys, activations=self._measured.of(job))
        is_taken = task.kind == "take"
        formula: Formula | None = None
        if task.numel and not is_taken:
            if self._method.statistics is not None:
                statistics = self._method.statistics(self._scanner(job), p, view)
                view = dataclasses.replace(view, statistics=statistics)
            has_kernel = self._kernels is not None and task.dtype in KERNEL_DTYPES
            if has_kernel and self._method.formula is not None:
                formula = self._method.formula(p, view, len(job.parts) - job.has_base)

        def merge(lane: Lane, chunk: Chunk, out: Bytes) -> None:
            if (
                formula is not None
                and self._has_kernels()
                and formula.merge(lane.bits(chunk), view.row_length, out, task.dtype)
            ):
                return
            base, sources = lane.load(chunk)
            at = dataclasses.replace(view, offset=chunk.start)
            merged = sources[0] if is_taken else self._method.merge(base, sources, p, at)
            rounded = merged.to(torch_dtype(task.dtype))
            as_tensor(out, task.dtype, rounded.numel()).copy_(rounded, non_blocking=True)
            lane.check_finite(chunk)
            check_result(merged, rounded, chunk.start)
            lane.wait()

        return merge

    def _copier(self) -> MergeChunk:
        def merge(lane: Lane, chunk: Chunk, out: Bytes) -> None:
            first, *others = (raw.data for raw in lane.raw(chunk))
            for position, other in enumerate(others, start=1):
                if not np.array_equal(first, other):
                    raise DifferentValuesError(position)
            out[:] = first

        return merge

    def _scanner(self, job: Job) -> methods.Scan:
        def scan(
            look: methods.Look,
            start: int = 0,
            stop: int | None = None,
            *,
            fused: methods.FusedLook | None = None,
        ) -> Iterator[Any]:
            def see(lane: Lane, chunk: Chunk) -> Any:
                if fused is not None and self._has_kernels():
                    counted = fused(lane.bits(chunk))
                    if counted is not None:
                        return counted
                base, sources = lane.load(chunk)
                seen = look(base, sources, chunk.start)
                lane.check_finite(chunk)
                return seen.cpu()

            def see_span(span: Chunk, lane: Lane) -> list[Any]:
                return [see(lane, chunk) for chunk in span.cut(self._step(job))]

            spans = (functools.partial(see_span, span) for span in self._spans(job, start, stop))
            for seen in self._lanes.run(spans):
                yield from seen

        return scan

    def _has_kernels(self) -> bool:
        return self._kernels is not None and self._kernels.done() and self._kernels.result()

    def _spans(self, job: Job, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """At least one, be it empty."""
        stop = job.task.numel if stop is None else min(stop, job.task.numel)
        step, length, fetched = self._step(job), self._length(job), start
        for begin in range(start, max(stop, start + 1), length):
            if fetched <= begin < stop:
                fetched = begin + READ_AHEAD * step
                end = min(fetched + READ_AHEAD * step, stop)
                for part in job.parts:
                    self._readers[part.reader].prefetch(part.tensor, begin, end)
            yield Chunk(job.parts, job.has_base, begin, min(begin + length, stop))

    def _length(self, job: Job) -> int:
        """How many elements a lane gets at a time: whole chunks."""
        step = self._step(job)
        if self._on_cuda:
            return step
        shared = job.task.numel // (step * self._lanes.count * SPANS_PER_LANE)
        return step * min(max(shared, 1), LONGEST_SPAN)

    def _step(self, job: Job) -> int:
        """How many elements to take at a time."""
        if job.task.kind != "merge":
            return self._chunk
        return self._method.chunk_length(job.parameters, job.view, self._chunk)

    def _describe_input(self, job: Job, position: int) -> SourceError:
        """Say where an input is not finite, after reading all of its tensor."""
        part = job.parts[position]
        name = self._work.inputs[part.reader].name
        step = self._step(job)
        count, first, value = 0, 0, 0.0
        for chunk in itertools.chain.from_iterable(span.cut(step) for span in self._spans(job)):
            stored = read_range(self._readers[part.reader], part.tensor, chunk.start, chunk.stop)
            values = stored.to(torch_dtype(self._compute))
            bad = (~values.isfinite()).nonzero()[:, 0]
            if count == 0 and bad.numel():
                first, value = chunk.start + int(bad[0]), float(values[bad[0]])
            count += bad.numel()
        return SourceError(
            f"{name} holds {count} value(s) that are NaN or infinite in {part.tensor}, the first "
            f"({value:g}) at {unravel(first, job.task.shape)}; leave this source out"
        )


def _start_kernels(bytes_to_write: int, fused: bool | None) -> Future[bool] | None:
    """Begin to load or compile the kernels, where they are wanted."""
    if fused is False or (fused is None and bytes_to_write <= SMALL and not are_kept()):
        return None
    loading = kernels()
    wait([loading], None if fused else LOADING)
    return loading
