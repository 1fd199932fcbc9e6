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
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from mergeops import methods
from mergeops.bad_values import (
    DifferentValuesError,
    NonFiniteInputError,
    NonFiniteResultError,
    check_result,
    unravel,
)
from mergeops.buffers import BufferPool
from mergeops.checkpoint.dtypes import BY_WORD, item_size, torch_dtype, word
from mergeops.checkpoint.reader import Bytes, as_tensor, read_range
from mergeops.devices import is_cuda
from mergeops.errors import MergeError, SourceError
from mergeops.inputs import open_inputs
from mergeops.kernels.native import are_kept
from mergeops.lanes import Chunk, Lane, Lanes, Part
from mergeops.methods.fused import KERNEL_DTYPES, Formula, kernels
from mergeops.methods.randomness import random_key

if TYPE_CHECKING:
    from mergeops.plan import Plan, TensorTask

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


class Piece(NamedTuple):
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
        chunk: elements at a time, a multiple of ``methods.BLOCK``; a method that takes whole rows
            gets about as many.
        lanes: parallel spans.
        unhashed: how many finished spans may wait for who uses them.
        fused: use compiled kernels, which give the same bits. None uses them when they are there:
            where this machine must first compile them, torch begins, and a small merge is done
            before.

    Raises:
        SourceError: an input's file is missing or changed.
    """

    def __init__(
        self,
        plan: Plan,
        devices: Sequence[str],
        chunk: int,
        lanes: int,
        unhashed: int,
        *,
        fused: bool | None = None,
    ) -> None:
        self._plan = plan
        self._method = methods.get(plan.method)
        self._chunk = chunk
        self._parameters = self._method.parameters(**plan.parameters)
        compute = BY_WORD[plan.compute]
        self._compute = compute
        on_cpu = not is_cuda(devices[0]) and compute == "F32"
        self._kernels: Future[bool] | None = None
        may = on_cpu and fused is None
        if (on_cpu and fused) or (may and (plan.bytes_to_write > SMALL or are_kept())):
            self._kernels = kernels()
            wait([self._kernels], None if fused else LOADING)
        tasks = [task for shard in plan.shards for task in shard.tensors]
        parts = {part.input for task in tasks for part in plan.parts(task)}
        self._inputs = [planned for i, planned in enumerate(plan.inputs) if i in parts]
        self._positions = {input: i for i, input in enumerate(sorted(parts))}
        everything = [*([plan.base] if plan.base else []), *plan.sources]
        with contextlib.ExitStack() as opened:
            self._readers = open_inputs(opened, self._inputs, everything, plan.vocabulary, compute)
            self._files = opened.pop_all()
        most = max(len(plan.parts(task)) for task in tasks)
        longest = max(self._step(task) for task in tasks)
        self._lanes = Lanes(
            lambda device, single: Lane(self._readers, most, longest, compute, device, single),
            devices,
            lanes,
        )
        self._on_cuda = is_cuda(devices[0])
        # Results come in order, so all that are under way must find a buffer.
        count = self._lanes.window + unhashed + 1
        largest = max(self._span(task) * item_size(task.dtype) for task in tasks)
        self._buffers = BufferPool(count, largest, devices[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lanes.__exit__(kind, error, traceback)
        self._files.close()

    def results(self, tasks: Iterable[TensorTask]) -> Iterator[Piece]:
        """The bytes of tensors of the result, in order.

        While the last spans of one are under way the next one begins.

        Raises:
            SourceError: an input changed, cannot be read, or holds NaN or infinity.
            MergeError: the result overflows, or inputs disagree on whole numbers.
        """
        for piece in self._lanes.run(self._jobs(tasks)):
            if piece.is_last:
                for reader in self._readers:
                    reader.check_unchanged()
            yield piece

    def release(self, buffer: Bytes) -> None:
        """Give back what ``results`` yielded."""
        self._buffers.give_back(buffer)

    def _jobs(self, tasks: Iterable[TensorTask]) -> Iterator[Callable[[Lane], Piece]]:
        for task in tasks:
            with self._explained(task):
                merge = self._copier() if task.kind == "copy" else self._merger(task)
            for span in self._spans(task):
                yield functools.partial(self._piece, task, merge, span)

    def _piece(self, task: TensorTask, merge: MergeChunk, span: Chunk, lane: Lane) -> Piece:
        size = item_size(task.dtype)
        nbytes = (span.stop - span.start) * size
        buffer = self._buffers.take()
        try:
            with self._explained(task):
                for chunk in span.cut(self._step(task)):
                    begin, end = ((at - span.start) * size for at in (chunk.start, chunk.stop))
                    merge(lane, chunk, buffer[begin:end])
        except BaseException:
            self._buffers.give_back(buffer)
            raise
        return Piece(task, buffer, nbytes, span.start * size, span.stop == task.numel)

    @contextlib.contextmanager
    def _explained(self, task: TensorTask) -> Iterator[None]:
        """Errors of the block with the tensor and the place in it."""
        try:
            yield
        except NonFiniteInputError as error:
            raise self._describe_input(task, error.position) from error
        except DifferentValuesError as error:
            parts = self._parts(task)
            first, other = (self._inputs[parts[i].reader].name for i in (0, error.position))
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

    def _merger(self, task: TensorTask) -> MergeChunk:
        p = dataclasses.replace(self._parameters, **task.shared)
        place = methods.Place(
            numel=task.numel,
            per_source=task.per_source,
            keys=self._keys(task) if self._method.is_random else (),
            shape=task.shape,
        )
        is_taken = task.kind == "take"
        if self._method.statistics is not None and task.numel and not is_taken:
            found = self._method.statistics(self._scanner(task), p, place)
            place = dataclasses.replace(place, statistics=found)
        formula: Formula | None = None
        has_kernel = self._kernels is not None and task.dtype in KERNEL_DTYPES
        if has_kernel and self._method.formula is not None and task.numel and not is_taken:
            count = len(self._plan.parts(task)) - self._plan.has_base(task)
            formula = self._method.formula(p, place, count)

        def merge(lane: Lane, chunk: Chunk, out: Bytes) -> None:
            if (
                formula is not None
                and self._has_kernels()
                and formula.merge(lane.bits(chunk), place.row_length, out, task.dtype)
            ):
                return
            base, sources = lane.load(chunk)
            at = dataclasses.replace(place, offset=chunk.start)
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

    def _scanner(self, task: TensorTask) -> methods.Scan:
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
                found = look(base, sources, chunk.start)
                lane.check_finite(chunk)
                return found.cpu()

            def work(span: Chunk, lane: Lane) -> list[Any]:
                return [see(lane, chunk) for chunk in span.cut(self._step(task))]

            jobs = (functools.partial(work, span) for span in self._spans(task, start, stop))
            for found in self._lanes.run(jobs):
                yield from found

        return scan

    def _has_kernels(self) -> bool:
        return self._kernels is not None and self._kernels.done() and self._kernels.result()

    def _spans(self, task: TensorTask, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """At least one, be it empty."""
        stop = task.numel if stop is None else min(stop, task.numel)
        step, length, parts = self._step(task), self._span(task), self._parts(task)
        has_base, fetched = self._plan.has_base(task), start
        for begin in range(start, max(stop, start + 1), length):
            if fetched <= begin < stop:
                fetched = begin + READ_AHEAD * step
                end = min(fetched + READ_AHEAD * step, stop)
                for part in parts:
                    self._readers[part.reader].prefetch(part.tensor, begin, end)
            yield Chunk(parts, has_base, begin, min(begin + length, stop))

    def _span(self, task: TensorTask) -> int:
        """How many elements a lane gets at a time: whole chunks."""
        step = self._step(task)
        if self._on_cuda:
            return step
        shared = task.numel // (step * self._lanes.count * SPANS_PER_LANE)
        return step * min(max(shared, 1), LONGEST_SPAN)

    def _step(self, task: TensorTask) -> int:
        """How many elements to take at a time."""
        if task.kind != "merge":
            return self._chunk
        p = dataclasses.replace(self._parameters, **task.shared)
        row = task.shape[-1] if task.shape else 1
        return self._method.chunk_length(p, max(row, 1), self._chunk)

    def _parts(self, task: TensorTask) -> tuple[Part, ...]:
        parts = self._plan.parts(task)
        return tuple(Part(self._positions[part.input], part.tensor) for part in parts)

    def _keys(self, task: TensorTask) -> tuple[int, ...]:
        """A random key for each source, another one for each tensor and each time it is read."""
        keys = []
        parts = self._plan.parts(task)[self._plan.has_base(task) :]
        for i, part in enumerate(parts):
            name = task.name if part.tensor == task.name else f"{task.name} of {part.tensor}"
            before = parts[:i].count(part)
            digest = self._plan.inputs[part.input].sha256
            keys.append(random_key(self._plan.seed, digest, f"{name} {before}" if before else name))
        return tuple(keys)

    def _describe_input(self, task: TensorTask, position: int) -> SourceError:
        """Say where an input is not finite, after reading all of its tensor."""
        part = self._parts(task)[position]
        name = self._inputs[part.reader].name
        step = self._step(task)
        count, first, value = 0, 0, 0.0
        for chunk in itertools.chain.from_iterable(span.cut(step) for span in self._spans(task)):
            stored = read_range(self._readers[part.reader], part.tensor, chunk.start, chunk.stop)
            values = stored.to(torch_dtype(self._compute))
            bad = (~values.isfinite()).nonzero()[:, 0]
            if count == 0 and bad.numel():
                first, value = chunk.start + int(bad[0]), float(values[bad[0]])
            count += bad.numel()
        return SourceError(
            f"{name} holds {count} value(s) that are NaN or infinite in {part.tensor}, the first "
            f"({value:g}) at {unravel(first, task.shape)}; leave this source out"
        )
