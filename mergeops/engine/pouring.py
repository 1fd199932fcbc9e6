"""A plan's result poured into what takes it, tensor after tensor: nothing is written.

What is poured are the bytes that ``merge`` would write, and their digest is the one that a
checkpoint of them would have. Only the chunks under way are in memory, whatever the model's size.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from mergeops import methods
from mergeops.checkpoint import combined_sha256
from mergeops.engine.devices import choose_devices, lane_count
from mergeops.engine.memory_budget import UNHASHED
from mergeops.engine.readers import OpenInputs
from mergeops.engine.stream import ResultBytes, TensorStream
from mergeops.engine.writer import OrderedThread
from mergeops.errors import MergeError
from mergeops.planning import Plan
from mergeops.progress import Tick

if TYPE_CHECKING:
    from hashlib import _Hash

Take = Callable[[str, int, memoryview], None]
"""Called with a tensor's name, the offset in its bytes, and bytes that are valid in the call."""


def pour(
    plan: Plan,
    take: Take,
    *,
    device: str = "auto",
    inputs: OpenInputs | None = None,
    progress: Tick | None = None,
) -> str:
    """Execute a plan into ``take``.

    Args:
        plan: from ``make_plan``.
        take: gets the bytes of all tensors in the order of the files.
        device: auto, cpu, cuda (all of them) or cuda:N.
        inputs: opened for plans before this one, and left open; None opens them for this one.
        progress: told how many bytes were taken.

    Returns:
        ``weights_sha256`` of the checkpoint that ``merge`` would write.

    Raises:
        ConfigError: no such device.
        SourceError: an input changed, cannot be read, or holds NaN or infinity.
        MergeError: the result overflows, or the plan is of another version.
    """
    version = methods.get(plan.method).version
    if plan.method_version != version:
        raise MergeError(
            f"the plan was made with version {plan.method_version} of {plan.method}, but this is "
            f"version {version}; plan again"
        )
    devices = choose_devices(device)
    digests: dict[str, str] = {}
    done = 0
    with (
        contextlib.ExitStack() as opened,
        TensorStream(
            plan,
            devices,
            None,
            lane_count(devices),
            UNHASHED,
            inputs=inputs or opened.enter_context(OpenInputs()),
        ) as stream,
        OrderedThread(UNHASHED) as hashing,
    ):
        for shard in plan.shards:
            digest = hashlib.sha256(shard.header)
            for piece in stream.results(shard.tensors):
                take(piece.task.name, piece.offset, piece.data)
                hashing.submit(_hash, digest, piece, stream)
                done += piece.nbytes
                if progress is not None:
                    progress(done, plan.bytes_to_write)
            hashing.drain()
            digests[shard.name] = digest.hexdigest()
    return combined_sha256(digests)


def _hash(digest: _Hash, piece: ResultBytes, stream: TensorStream) -> None:
    try:
        digest.update(piece.data)
    finally:
        stream.release(piece.buffer)
