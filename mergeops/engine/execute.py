"""The engine: from a plan to a checkpoint, in one stream, with bounded memory.

    lanes: read -> convert -> merge -> round     (parallel spans, see stream.py and lanes.py)
    this thread: write                           (in order, see writer.py)
    one thread more: hash -> journal             (in order)

Work happens in a hidden sibling directory of the output; the manifest is written last and the
directory renamed when everything is on the disk. So a crash leaves something that the same command
resumes, never something that looks finished.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial as partial_function
from pathlib import Path

from mergeops import methods
from mergeops.checkpoint import (
    MANIFEST,
    HashAlong,
    WrittenFile,
    hold,
    sync_directory,
    sync_file,
    write_manifest,
)
from mergeops.engine.destination import check_output, check_space, is_done, remove_empty
from mergeops.engine.devices import choose_devices, is_cuda, is_device_failure, lane_count
from mergeops.engine.memory_budget import UNHASHED, Tuning
from mergeops.engine.pinning import hashed_now, hashes_of, pinned_by
from mergeops.engine.records import default_card, manifest_content
from mergeops.engine.stream import ResultBytes, TensorStream
from mergeops.engine.working_directory import LOCK, discard, owned
from mergeops.engine.writer import (
    JOURNAL,
    Journal,
    OrderedThread,
    ShardWriter,
    journal_of,
    write_error,
)
from mergeops.errors import MergeError, MergeopsError, SourceError
from mergeops.planning import Plan, Shard, TensorTask, write_small_files
from mergeops.progress import Tick

CARD = "README.md"
WriteShards = Callable[[Plan, Path, Journal, Tick | None, HashAlong | None], dict[str, WrittenFile]]
"""``write(plan, partial, journal, progress, hashes)`` makes the result's weight files, by name."""


def merge(
    plan: Plan,
    out: Path,
    *,
    device: str = "auto",
    progress: Tick | None = None,
    card: str | None = None,
    tuning: Tuning | None = None,
) -> Path:
    """Execute a plan into a directory, or find it done there.

    Args:
        plan: from ``make_plan``.
        out: the directory to make; may exist if it is empty or holds this very merge. A link is
            followed.
        device: auto, cpu, cuda (all of them) or cuda:N.
        progress: told how far the writing is.
        card: text of README.md; a short one by default.
        tuning: for measurements and tests.

    Returns:
        ``out``, complete; it is held, so gc leaves it alone while this process lives.

    Raises:
        As ``merge_and_pin``.
    """
    out = Path(out).absolute()
    merge_and_pin(plan, out, device=device, progress=progress, card=card, tuning=tuning)
    return out


def merge_and_pin(
    plan: Plan,
    out: Path,
    *,
    cache_dir: Path | None = None,
    device: str = "auto",
    progress: Tick | None = None,
    card: str | None = None,
    tuning: Tuning | None = None,
    write: WriteShards | None = None,
) -> Plan:
    """Execute a plan whose inputs need not be hashed yet: they are while they are merged.

    Args:
        plan: from ``make_plan``.
        out: as for ``merge``, and so are the others.
        cache_dir: where the digests of the inputs' files are remembered.
        device: see ``merge``.
        progress: see ``merge``.
        card: see ``merge``.
        tuning: see ``merge``.
        write: what writes the weight files; None does it in this process.

    Returns:
        The plan with the digests of all inputs, which is what the manifest names.

    Raises:
        ConfigError: no such device.
        SourceError: an input changed, cannot be read, or holds NaN or infinity.
        MergeError: ``out`` holds something else, the disk is full, a device fails, the result
            overflows, or the plan is of another version.
    """
    out = Path(out).absolute()
    chosen = choose_devices(device)
    version = methods.get(plan.method).version
    if plan.method_version != version:
        raise MergeError(
            f"the plan was made with version {plan.method_version} of {plan.method}, but this is "
            f"version {version}; plan again"
        )
    # A directory cannot be renamed to the name of a link.
    place = Path(os.path.realpath(out))
    if not plan.is_pinned and check_output(place) is not None:
        plan = hashed_now(plan, cache_dir, progress)
    if plan.is_pinned and _is_found(plan, place) and hold(place):
        return plan
    remove_empty(place)
    partial = place.with_name(f".{place.name}.partial")
    with owned(partial):
        if not plan.is_pinned and any((d / MANIFEST).is_file() for d in (place, partial)):
            plan = hashed_now(plan, cache_dir, progress)
        if plan.is_pinned and _is_found(plan, place) and hold(place):
            discard(partial)
            return plan
        present = sum(f.stat().st_blocks * 512 for f in partial.iterdir())
        check_space(plan, place, present)
        try:
            if not plan.is_pinned or not _is_complete(plan, partial):
                here = partial_function(_write_shards, devices=chosen, tuning=tuning or Tuning())
                plan = _write_all(plan, partial, write or here, progress, card, cache_dir)
            (partial / JOURNAL).unlink(missing_ok=True)
            # The lock goes with the directory where that is renamed to.
            hold(partial)
            sync_directory(partial)
            # With the lock inside: a process that waits for it must not begin in what is renamed.
            os.rename(partial, place)
            sync_directory(place.parent)
            (place / LOCK).unlink(missing_ok=True)
            sync_directory(place)
        except OSError as error:
            raise write_error(out, error) from error
        except RuntimeError as error:
            if not (is_cuda(chosen[0]) and is_device_failure(error)):
                raise
            raise _device_error(out, chosen, error) from error
    return plan


def _device_error(out: Path, devices: Sequence[str], error: RuntimeError) -> MergeError:
    # The first two sentences say what; torch goes on with advice for training.
    sentences = ". ".join(str(error).splitlines()[0].split(". ")[:2])
    return MergeError(
        f"{out} cannot be made on {', '.join(devices)}: {sentences}; what is done so far is "
        "kept, and the same command goes on from there, also on another device (output.device=cpu)"
    )


def _is_found(plan: Plan, out: Path) -> bool:
    """Whether the merge is there; a try that was killed after the rename left its lock."""
    if not is_done(plan, out):
        return False
    with contextlib.suppress(OSError):
        (out / LOCK).unlink()
    return True


def _is_complete(plan: Plan, partial: Path) -> bool:
    """Whether an earlier try got as far as the manifest, and only had to rename."""
    try:
        if not (partial / MANIFEST).is_file() or not is_done(plan, partial):
            return False
    except MergeopsError:
        return False
    # It may have been killed before this.
    sync_file(partial / MANIFEST)
    return True


def _write_all(
    plan: Plan,
    partial: Path,
    write: WriteShards,
    progress: Tick | None,
    card: str | None,
    cache_dir: Path | None,
) -> Plan:
    work = {shard.name for shard in plan.shards} | {LOCK, JOURNAL}
    _remove_all_but(partial, work | {journal_of(shard) for shard in plan.shards})
    name = plan.digest if plan.is_pinned else plan.files_digest
    journal = Journal(partial, name, plan.files_digest)
    try:
        with hashes_of(plan) or contextlib.nullcontext() as hashes:
            files = write(plan, partial, journal, progress, hashes)
            if hashes is not None:
                plan = pinned_by(plan, hashes, cache_dir)
        _remove_all_but(partial, work)
        small_files = write_small_files(plan, partial)
    except (MergeError, SourceError) as error:
        if not isinstance(error.__cause__, OSError):
            # Going on would fail in the same way: nothing of it is worth keeping.
            journal.close()
            discard(partial)
        raise
    finally:
        journal.close()
    (partial / CARD).write_text(card or default_card(plan), encoding="utf-8")
    write_manifest(partial, manifest_content(plan), [*files, *small_files, CARD], files)
    return plan


def _remove_all_but(directory: Path, names: Collection[str]) -> None:
    for path in directory.iterdir():
        if path.name not in names:
            path.unlink()


def _write_shards(
    plan: Plan,
    partial: Path,
    journal: Journal,
    progress: Tick | None,
    hashes: HashAlong | None,
    *,
    devices: Sequence[str],
    tuning: Tuning,
) -> dict[str, WrittenFile]:
    lanes = tuning.lanes or lane_count(devices)
    written: dict[str, WrittenFile] = {}
    before = 0

    def tell(position: int) -> None:
        if progress is not None:
            progress(before + position, plan.bytes_to_write)

    with (
        TensorStream(
            plan, devices, tuning.chunk, lanes, UNHASHED, fused=tuning.fused, hashes=hashes
        ) as stream,
        OrderedThread(UNHASHED) as thread,
    ):
        for shard in plan.shards:
            written[shard.name] = write_shard(shard, partial, journal, stream, thread, tell)
            before += shard.nbytes
            tell(0)
    return written


def write_shard(
    shard: Shard,
    partial: Path,
    journal: Journal,
    stream: TensorStream,
    thread: OrderedThread,
    tell: Callable[[int], None],
) -> WrittenFile:
    """Write one file of the result, or keep of it what an earlier try put there.

    Args:
        shard: of the stream's plan.
        partial: the directory that the merge works in.
        journal: where finished tensors are noted, and found.
        stream: gives the bytes.
        thread: hashes them.
        tell: called with the position in the file.

    Raises:
        SourceError, MergeError: as ``merge``.
    """
    shard_writer = ShardWriter(
        partial / shard.name,
        shard.header,
        [(tensor.name, tensor.nbytes) for tensor in shard.tensors],
        journal,
        tell,
    )
    try:
        _write_tensors(shard.tensors, stream, thread, shard_writer, tell)
        thread.drain()
        return shard_writer.finish()
    finally:
        thread.settle()
        shard_writer.close()


def _write_tensors(
    tasks: Sequence[TensorTask],
    stream: TensorStream,
    thread: OrderedThread,
    file: ShardWriter,
    tell: Callable[[int], None],
) -> None:
    """Write all tensors into the file, or keep what an earlier try put there."""

    def take(piece: ResultBytes) -> None:
        try:
            file.take(piece.data)
        finally:
            stream.release(piece.buffer)
        if piece.is_last:
            file.finish_tensor(piece.task.name)
        tell(file.position)

    unfinished = [task for task in tasks if task.name not in file.done]
    left = deque(tasks)
    for piece in stream.results(unfinished):
        while left[0] is not piece.task:
            thread.submit(file.keep, left.popleft().name)
        if piece.is_last:
            left.popleft()
        file.write(piece.task.name, piece.offset, piece.data)
        thread.submit(take, piece)
    for task in left:
        thread.submit(file.keep, task.name)
