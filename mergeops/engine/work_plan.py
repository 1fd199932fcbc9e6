"""What each worker of a merge will read, write and hold, known from headers alone."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergeops.checkpoint import StoredTensor, open_checkpoint, size_text
from mergeops.engine.devices import lane_count
from mergeops.engine.jobs import Job, Work, work_of
from mergeops.engine.memory_budget import held, tuning_for
from mergeops.engine.pinning import unhashed_files
from mergeops.errors import SourceError
from mergeops.planning import Plan, PlannedInput, Shard
from mergeops.recipe import ExecutorSpec, parse_size
from mergeops.recover import is_sharded

MEASURED = 1 << 28
"""Bytes that are read to learn how fast this is."""
CHUNK = 1 << 24


@dataclass(frozen=True)
class WorkShare:
    """What one worker will do."""

    worker: int
    files: tuple[str, ...]
    """Of the result."""
    hashes: int
    """Bytes of inputs that have no digest yet, which it reads for that first."""
    reads: int
    """Bytes of inputs; a method that needs statistics of a tensor first looks at them again."""
    writes: int
    """Bytes of the result."""
    holds: int
    """Bytes of memory of its own, at most."""
    seconds: float


@dataclass(frozen=True)
class WorkPlan:
    """What all workers of a merge will do."""

    plan_digest: str
    """Empty where inputs are not hashed yet."""
    shares: tuple[WorkShare, ...]
    bandwidth: float
    """Bytes a second that one worker reads or writes."""
    seconds: float
    """Of the longest share: all begin at once, and none waits for another but after the hashing."""
    notes: tuple[str, ...]
    """What the numbers stand on."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def plan_work(
    plan: Plan, executor: ExecutorSpec, *, bandwidth: float | None = None, lanes: int | None = None
) -> WorkPlan:
    """Who writes what, as workers of one speed would share it out.

    Args:
        plan: from ``make_plan``.
        executor: how many workers, with how much memory.
        bandwidth: bytes a second that each reads or writes; None measures it here.
        lanes: threads of each; None takes those of this machine.

    Raises:
        MergeError: ``executor.memory`` is too little.
        SourceError: an input cannot be read.
    """
    count = 1 if executor.workers == "auto" else int(executor.workers)
    lanes = lanes or executor.threads or lane_count(["cpu"])
    work, stored = work_of(plan), [_stored(planned) for planned in plan.inputs]
    reads = {shard.name: _bytes_read(shard, plan, work, stored) for shard in plan.shards}
    if executor.memory is not None:
        tuning = tuning_for(plan, parse_size("executor.memory", executor.memory), lanes)
        lanes, chunk = tuning.lanes or lanes, tuning.chunk or 0
    else:
        chunk = tuning_for(plan, 1 << 62, lanes).chunk or 0
    holds = held(plan, lanes, chunk, work)
    notes = []
    if bandwidth is None:
        bandwidth = measured_bandwidth(plan)
        notes.append(f"this machine reads the largest input at {size_text(int(bandwidth))}/s")
    notes.append(
        f"each worker is taken to read or write {size_text(int(bandwidth))}/s, whatever the others "
        "do, and to compute as fast as that"
    )
    unhashed = sum(stamp.size for stamp in unhashed_files(plan).values())
    if unhashed:
        notes.append(f"{size_text(unhashed)} of inputs are not hashed yet, which is done first")
    if len(plan.shards) < count:
        notes.append(
            f"there are {len(plan.shards)} files, so no more workers have work; a smaller "
            "output.shard_size makes more of them"
        )
    shares = []
    for number, files in enumerate(_shared_out(plan.shards, reads, count), start=1):
        read, written = sum(reads[f.name] for f in files), sum(f.nbytes for f in files)
        hashes = unhashed // count
        seconds = (hashes + read + written) / bandwidth
        names = tuple(sorted(file.name for file in files))
        shares.append(WorkShare(number, names, hashes, read, written, holds, seconds))
    longest = max(share.seconds for share in shares)
    digest = plan.digest if plan.is_pinned else ""
    return WorkPlan(digest, tuple(shares), bandwidth, longest, tuple(notes))


def _shared_out(
    shards: tuple[Shard, ...], reads: Mapping[str, int], count: int
) -> list[list[Shard]]:
    """Each file to who is free first, the largest first, as an executor does."""
    shares: list[list[Shard]] = [[] for _ in range(min(count, len(shards)))]
    loads = [0] * len(shares)
    for shard in sorted(shards, key=lambda shard: -shard.nbytes):
        least = loads.index(min(loads))
        shares[least].append(shard)
        loads[least] += shard.nbytes + reads[shard.name]
    return shares


def _bytes_read(
    shard: Shard, plan: Plan, work: Work, stored: list[Mapping[str, StoredTensor]]
) -> int:
    return sum(_of_tensor(work.jobs[task.name], plan, work, stored) for task in shard.tensors)


def _of_tensor(job: Job, plan: Plan, work: Work, stored: list[Mapping[str, StoredTensor]]) -> int:
    nbytes = 0
    for part in job.parts:
        planned = work.inputs[part.reader]
        name = planned.renamed.get(part.tensor, part.tensor)
        tensor = stored[plan.inputs.index(planned)].get(name)
        # What is made of several tensors takes about as much as the result.
        nbytes += tensor.stop - tensor.start if tensor else job.task.nbytes
    return nbytes


def _stored(planned: PlannedInput) -> Mapping[str, StoredTensor]:
    """Where the tensors of an input, or of an adapter's base, are."""
    place = Path(planned.adapter_base or planned.path)
    return {} if is_sharded(place) else open_checkpoint(place).tensors


def measured_bandwidth(plan: Plan) -> float:
    """Bytes a second at which this machine reads the largest input, not from memory.

    Raises:
        SourceError: it cannot be read.
    """
    files = [
        (stamp.size, Path(planned.path) / name)
        for planned in plan.inputs
        for name, stamp in planned.stamps.items()
    ]
    size, file = max(files)
    length = min(size, MEASURED)
    try:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, length, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            for position in range(0, length, CHUNK):
                os.pread(descriptor, CHUNK, position)
            return length / max(time.perf_counter() - began, 1e-6)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror or error}") from error
