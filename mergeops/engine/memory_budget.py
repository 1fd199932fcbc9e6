"""How a merge is cut so that a process holds no more memory than it may."""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.checkpoint import BY_WORD, item_size, size_text
from mergeops.engine.devices import chunk_for
from mergeops.engine.jobs import Job, Work, work_of
from mergeops.errors import MergeError
from mergeops.kernels import BLOCK
from mergeops.planning import Plan

UNHASHED = 8
"""Finished spans that may wait to be hashed."""
SPAN = 2
"""Chunks of a span, at most; see ``stream.LONGEST_SPAN``."""
PROCESS = 300 * 10**6
"""Bytes of its own that Python, torch and the libraries take, whatever is merged; measured."""
STORED = 8
"""Bytes of the widest format that is read, for each entry and input."""
SCRATCH = 3
"""Copies of its inputs in the compute dtype that an operation may make besides."""
MATRIX_SCRATCH = 8
"""The same of methods that decompose matrices, in double precision, with their factors."""
MOMENTS = 5
"""Copies of a matrix of moments that a method may hold."""
LEAST_CHUNK = 1 << 15
"""Elements below which a second lane is worth less than longer chunks."""


@dataclass(frozen=True)
class Tuning:
    """How the work is cut; never what comes out."""

    chunk: int | None = None
    """Elements at a time, a multiple of ``BLOCK``; None takes what suits the device."""
    lanes: int | None = None
    """Parallel chunks; None takes one for each processor, or ``CUDA_LANES`` for each device."""
    fused: bool | None = None
    """Whether to use compiled kernels, which give the same bits; None takes them when loaded."""


def tuning_for(plan: Plan, memory: int, lanes: int, device: str = "cpu") -> Tuning:
    """The widest cut that holds at most so much memory.

    Args:
        plan: what is merged.
        memory: bytes of the process's own.
        lanes: most chunks at a time.
        device: cpu or cuda:N.

    Raises:
        MergeError: even one smallest chunk is too much; says of which tensor, and how much it
            takes.
    """
    work = work_of(plan)
    parts = max(len(job.parts) for job in work.jobs.values())
    for least in (LEAST_CHUNK, BLOCK):
        for count in range(lanes, 0, -1):
            chunk = chunk_for(parts, device, count)
            while chunk >= least:
                if held(plan, count, chunk, work) <= memory:
                    return Tuning(chunk, count)
                chunk = chunk // 2 // BLOCK * BLOCK
    needed = held(plan, 1, BLOCK, work)
    largest = max(work.jobs.values(), key=lambda job: _entries(work, job, BLOCK) * len(job.parts))
    raise MergeError(
        f"executor.memory is {size_text(memory)}, but the largest slice of "
        f"{largest.task.name} takes {size_text(needed)} with one thread; allow at least that much"
    )


def held(plan: Plan, lanes: int, chunk: int, work: Work | None = None) -> int:
    """Bytes of its own that a process holds at most while it merges.

    Args:
        plan: what is merged.
        lanes: chunks at a time.
        chunk: their elements.
        work: of the plan, where it is known.
    """
    work = work or work_of(plan)
    compute = item_size(BY_WORD[plan.compute])
    jobs = work.jobs.values()
    parts = max(len(job.parts) for job in jobs)
    longest = max(_entries(work, job, chunk) for job in jobs)
    scratch = MATRIX_SCRATCH if work.method.takes_matrices else SCRATCH
    lane = parts * longest * (STORED + compute * (1 + scratch))
    result = SPAN * max(_entries(work, job, chunk) * item_size(job.task.dtype) for job in jobs)
    # As many results as can be under way and wait to be hashed, see TensorStream.
    results = (2 * lanes + UNHASHED + 1) * result
    if plan.activations:
        # Of the moments of a matrix's inputs: their sum, its factor and what is under way.
        lane += MOMENTS * STORED * max(job.view.row_length for job in jobs) ** 2
    return PROCESS + lanes * lane + results + _kept_whole(plan)


def _entries(work: Work, job: Job, chunk: int) -> int:
    """Elements of a tensor that are taken at a time."""
    if job.task.kind != "merge":
        return min(chunk, max(job.task.numel, 1))
    return work.method.chunk_length(job.parameters, job.view, chunk)


def _kept_whole(plan: Plan) -> int:
    """What readers keep of adapted tensors, which are made whole, in double precision at most."""
    adapted = sum(planned.adapter_base is not None for planned in plan.inputs)
    return adapted * 2 * STORED * max(task.numel for task in plan.tasks) if adapted else 0
