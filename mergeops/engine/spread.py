"""One merge over many workers: each writes whole files of the result, and reads only their inputs.

Workers share nothing but storage: the plan, which the driver puts beside the files, decides every
byte, so that it does not matter who writes which file, in what order, or how often. A file's
journal lies beside it: who takes the file of a dead worker goes on behind its last tensor. The
driver notes the digests that workers return, and writes index and manifest when all are there.
Statistics over a tensor are found by the worker that writes it: no two need the same.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial as partial_function
from pathlib import Path
from typing import Any, Self

from mergeops.checkpoint import (
    HashAlong,
    WrittenFile,
    files_sha256,
    remember,
    replace_with,
)
from mergeops.engine.devices import choose_devices, lane_count
from mergeops.engine.execute import merge_and_pin, write_shard
from mergeops.engine.memory_budget import UNHASHED, Tuning, tuning_for
from mergeops.engine.pinning import pinned, unhashed_files
from mergeops.engine.stream import TensorStream
from mergeops.engine.writer import Journal, OrderedThread, journal_of, write_error
from mergeops.errors import MergeError
from mergeops.executors import (
    Advanced,
    Desk,
    Event,
    Executor,
    Finished,
    Needs,
    Unit,
    open_executor,
    results,
)
from mergeops.planning import Plan
from mergeops.progress import Progress, Tick
from mergeops.recipe import ExecutorSpec, parse_size

PLAN = "plan.json"
WRITE_SHARD = "mergeops.engine.spread:write_shard_of"
HASH_FILE = "mergeops.engine.spread:hash_file"


def merge_on(
    executor: ExecutorSpec,
    plan: Plan,
    out: Path,
    *,
    cache_dir: Path | None = None,
    device: str = "auto",
    progress: Tick | None = None,
    told: Progress | None = None,
) -> Plan:
    """Execute a plan into a directory by workers, or find it done there.

    Args:
        executor: which.
        plan: from ``make_plan``; workers hash the files of inputs that have no digest yet.
        out: as for ``merge``; workers must see the directory that it is in.
        cache_dir: where the digests of the inputs' files are remembered.
        device: where workers do the arithmetic.
        progress: told how far the hashing, and then the writing, is.
        told: shows what each worker does.

    Returns:
        The plan with the digests of all inputs.

    Raises:
        ConfigError: workers cannot be had, or are not as they have to be.
        SourceError, MergeError: as ``merge``; or ``executor.memory`` is too little.
    """
    if executor.memory is not None:
        tuning_for(plan, parse_size("executor.memory", executor.memory), 1)
    with _Team(executor, plan, Path(out).absolute().parent, told) as team:
        if not plan.is_pinned:
            plan = _hashed(plan, team, cache_dir, progress)
        write = partial_function(_spread, team=team, device=device)
        return merge_and_pin(plan, out, device="cpu", progress=progress, write=write)


class _Team:
    """The workers of one merge, who are called when there is work.

    Args:
        executor: which.
        plan: its inputs' files must be there for all.
        place: the directory that they write below.
        told: shows what each does.
    """

    def __init__(
        self, executor: ExecutorSpec, plan: Plan, place: Path, told: Progress | None
    ) -> None:
        self._spec = executor
        self._place = place
        self._needs = Needs(files=files_of(plan), shared=(str(place),))
        self._told = told
        self._opened = contextlib.ExitStack()
        self._executor: Executor | None = None

    def do(
        self, units: Sequence[Unit], sizes: Mapping[str, int], progress: Tick | None
    ) -> Iterator[tuple[Unit, Any]]:
        """Units and their results, in the order in which they end.

        Args:
            units: at least one.
            sizes: name of the unit -> bytes.
            progress: told of the bytes of all.
        """
        if self._executor is None:
            try:
                self._place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise write_error(self._place, error) from error
            self._executor = self._opened.enter_context(open_executor(self._spec, self._needs))
        done = dict.fromkeys(sizes, 0)

        def tell(event: Event) -> None:
            if isinstance(event, Advanced):
                done[event.unit.name] = event.done
            elif isinstance(event, Finished):
                done[event.unit.name] = sizes[event.unit.name]
            if progress is not None:
                progress(sum(done.values()), sum(sizes.values()))

        for event in results(self._executor, units, progress=self._told, tell=tell):
            yield event.unit, event.result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _hashed(plan: Plan, team: _Team, cache_dir: Path | None, progress: Tick | None) -> Plan:
    """The plan with the digests of its inputs, whose files workers read for it."""
    stamps = unhashed_files(plan)
    units = [
        Unit.of(HASH_FILE, {"file": str(f), "size": s.size}, f.name) for f, s in stamps.items()
    ]
    units.sort(key=lambda unit: -int(unit.payload["size"]))
    sizes = {unit.name: int(unit.payload["size"]) for unit in units}
    digests = {Path(u.payload["file"]): str(sha) for u, sha in team.do(units, sizes, progress)}
    if cache_dir is not None:
        remember(cache_dir, digests, stamps)
    return pinned(plan, digests)


def hash_file(payload: Mapping[str, Any], place: Desk) -> str:
    """A worker's part: the sha256 of a file."""
    file = Path(payload["file"])
    return files_sha256([file], progress=place.tell)[file]


def _spread(
    plan: Plan,
    partial: Path,
    journal: Journal,
    progress: Tick | None,
    hashes: HashAlong | None,
    *,
    team: _Team,
    device: str,
) -> dict[str, WrittenFile]:
    """Have all weight files written by workers."""
    assert hashes is None, "a file's digest cannot be found by several processes"
    with replace_with(partial / PLAN) as temporary:
        temporary.write_text(json.dumps(plan.to_dict()), encoding="utf-8")
    units = _units(plan, partial, journal, device)
    nbytes = {shard.name: shard.nbytes for shard in plan.shards}
    sizes = {unit.name: nbytes[unit.payload["shard"]] for unit in units}
    written: dict[str, WrittenFile] = {}
    for unit, result in team.do(units, sizes, progress):
        name = unit.payload["shard"]
        written[name] = WrittenFile(result["sha256"], result["size"], result["tensors"])
        for tensor, xxh3 in written[name].tensors.items():
            if (name, tensor) not in journal.finished:
                journal.add(name, tensor, xxh3)
    for shard in plan.shards:
        _check_there(partial / shard.name, shard.nbytes)
    return {shard.name: written[shard.name] for shard in plan.shards}


def _units(plan: Plan, partial: Path, journal: Journal, device: str) -> list[Unit]:
    """A unit for each file, the largest first: what ends last is then short."""
    units = []
    for shard in sorted(plan.shards, key=lambda shard: -shard.nbytes):
        finished = {t: xxh3 for (file, t), xxh3 in journal.finished.items() if file == shard.name}
        payload = {
            "partial": str(partial),
            "plan_digest": plan.digest,
            "shard": shard.name,
            "device": device,
            "finished": finished,
        }
        units.append(Unit.of(WRITE_SHARD, payload, shard.name))
    return units


def files_of(plan: Plan) -> dict[str, int]:
    """The weight files of all inputs -> their sizes."""
    files = {}
    for planned in plan.inputs:
        for name, stamp in planned.stamps.items():
            files[str(Path(planned.path) / name)] = stamp.size
        for name, stamp in planned.base_stamps.items():
            files[str(Path(planned.adapter_base or planned.path) / name)] = stamp.size
    return files


def _check_there(file: Path, size: int) -> None:
    try:
        there = file.stat().st_size
    except OSError:
        there = -1
    if there != size:
        missing = "is not there" if there < 0 else f"has {there} bytes, not {size}"
        error = MergeError(
            f"{file} {missing}, though a worker wrote it; is the directory on storage that all "
            "share? The same command goes on"
        )
        raise error from FileNotFoundError(str(file))


def write_shard_of(payload: Mapping[str, Any], place: Desk) -> dict[str, Any]:
    """A worker's part: write one file of the result, or go on with it.

    Args:
        payload: the working directory, the plan's digest, the file's name, the device, and what
            is known to be finished of the file.
        place: its ``kept`` holds the inputs open for the next file.

    Returns:
        The file's sha256, size and the checksums of its tensors.
    """
    partial = Path(payload["partial"])
    plan, stream = _opened(payload, place)
    shard = next(each for each in plan.shards if each.name == payload["shard"])
    journal = Journal(partial, plan.digest, name=journal_of(shard))
    journal.finished |= {(shard.name, tensor): xxh3 for tensor, xxh3 in payload["finished"].items()}
    try:
        with OrderedThread(UNHASHED) as thread:
            written = write_shard(
                shard,
                partial,
                journal,
                stream,
                thread,
                lambda position: place.tell(position, shard.nbytes),
            )
    except BaseException:
        # Whatever is under way in it belongs to this file.
        place.kept.pop("merge").close()
        raise
    finally:
        journal.close()
    return {"sha256": written.sha256, "size": written.size, "tensors": dict(written.tensors)}


class _OpenPlan:
    """A plan with its inputs open."""

    def __init__(self, plan: Plan, device: str, memory: int | None) -> None:
        self.plan = plan
        self._opened = contextlib.ExitStack()
        devices = choose_devices(device)
        lanes = lane_count(devices)
        tuning = tuning_for(plan, memory, lanes, devices[0]) if memory else Tuning()
        self.stream = self._opened.enter_context(
            TensorStream(plan, devices, tuning.chunk, tuning.lanes or lanes, UNHASHED)
        )

    def close(self) -> None:
        self._opened.close()


def _opened(payload: Mapping[str, Any], place: Desk) -> tuple[Plan, TensorStream]:
    """The plan and its open inputs, kept from one file to the next."""
    kept: _OpenPlan | None = place.kept.get("merge")
    if kept is not None and kept.plan.digest != payload["plan_digest"]:
        kept.close()
        kept = None
    if kept is None:
        text = (Path(payload["partial"]) / PLAN).read_text(encoding="utf-8")
        plan = Plan.from_dict(json.loads(text))
        if plan.digest != payload["plan_digest"]:
            raise MergeError(
                f"{payload['partial']} holds the plan of another merge; run the command again "
                "when nobody else works there"
            )
        kept = place.kept["merge"] = _OpenPlan(plan, payload["device"], place.memory)
    return kept.plan, kept.stream
