"""Killed at any point, or out of disk: nothing half-done looks done, nothing done is lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.mortal_merges import Mortal
from support.sweeps import seeds

from mergeops.checkpoint.verification import verify_checkpoint
from mergeops.engine import execute, working_directory
from mergeops.engine.execute import UNHASHED, Tuning, merge
from mergeops.engine.writer import Journal
from mergeops.errors import MergeError, SourceError
from mergeops.planning.plan import Plan
from mergeops.planning.planner import make_plan

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def models(tiny_llama: Make) -> dict[str, Path]:
    base = tiny_llama(hidden=96, vocabulary_size=512, dtype="bfloat16")
    return {"base": base} | {
        name: tiny_llama(like=base, seed=i, dtype="bfloat16") for i, name in enumerate("ab", 1)
    }


@pytest.fixture(scope="module")
def plan(plan_of: Make, models: dict[str, Path]) -> Plan:
    """Several shards, and tensors of several chunks."""
    sources = {name: models[name] for name in "ab"}
    made: Plan = plan_of({"name": "ties"}, models["base"], sources, output={"shard_size": "150KB"})
    return made


@pytest.fixture(scope="module")
def mortal(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mortal]:
    running = Mortal(plan, tmp_path_factory.mktemp("mortal"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def expected(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a merge gives that nobody disturbs."""
    return contents(merge(plan, tmp_path_factory.mktemp("expected") / "out", device="cpu"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def journaled(out: Path) -> set[str]:
    """The tensors that the journal of an unfinished merge names, read without mergeops."""
    journal = out.with_name(f".{out.name}.partial") / "journal.jsonl"
    if not journal.exists():
        return set()
    found = set()
    for line in journal.read_bytes().splitlines(keepends=True)[1:]:
        if line.endswith(b"\n"):
            found.add(json.loads(line)["tensor"])
    return found


def every_tensor(plan: Plan) -> list[str]:
    return [tensor.name for shard in plan.shards for tensor in shard.tensors]


def finished_by(plan: Plan, position: int) -> set[str]:
    """The tensors that end at or before a byte, counted over all shards."""
    names, end = set(), 0
    for shard in plan.shards:
        end += len(shard.header)
        for tensor in shard.tensors:
            end += tensor.nbytes
            if end <= position:
                names.add(tensor.name)
    return names


def survives(
    plan: Plan, mortal: Mortal, out: Path, expected: dict[str, bytes]
) -> tuple[set[str], list[str]]:
    """Resume what was killed: equal bytes, and no tensor of the journal is computed again."""
    partial = out.with_name(f".{out.name}.partial")
    complete = out.exists() or (partial / "mergeops.json").exists()
    finished = journaled(out)
    end = mortal.merge(out)
    assert (end.exit_code, end.error) == (0, "")
    assert contents(out) == expected
    assert not finished & set(end.computed)
    if not complete:
        assert finished | set(end.computed) == set(every_tensor(plan))
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]
    return finished, end.computed


@pytest.mark.parametrize("seed", seeds(16))
def test_killed_at_any_byte_only_what_was_in_flight_is_lost(
    seed: int, plan: Plan, mortal: Mortal, expected: dict[str, bytes], tmp_path: Path
) -> None:
    position = random.Random(seed).randrange(plan.bytes_to_write)
    end = mortal.merge(tmp_path / "out", bytes=position)
    assert end.killed
    assert not (tmp_path / "out").exists()
    # Writing is in order: what ends before the write that was torn is in the journal, but for what
    # waited to be hashed, was being hashed, or was on its way there.
    written, hashed = finished_by(plan, end.began), journaled(tmp_path / "out")
    assert hashed <= written
    assert len(written - hashed) <= UNHASHED + 2
    survives(plan, mortal, tmp_path / "out", expected)


@pytest.mark.sweep
def test_killed_before_any_step_on_the_disk(
    plan: Plan, mortal: Mortal, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Of the calls that make, reserve, sync, remove or rename, one in five and the last eight."""
    all_steps = mortal.merge(tmp_path / "whole", step=10**6).steps
    shutil.rmtree(tmp_path / "whole")
    assert all_steps > 2 * len(plan.shards) + 10
    for step in [*range(0, all_steps - 8, 5), *range(all_steps - 8, all_steps)]:
        folder = tmp_path / str(step)
        folder.mkdir()
        assert mortal.merge(folder / "out", step=step).killed
        if (folder / "out").exists():
            # Left are the sync after the rename, and the lock's removal and its sync.
            assert step >= all_steps - 3
            lock = {} if step == all_steps - 1 else {"lock": b""}
            assert contents(folder / "out") == expected | lock
        survives(plan, mortal, folder / "out", expected)


@pytest.mark.parametrize("seed", seeds(8))
def test_killed_from_outside_at_any_time(
    seed: int, plan: Plan, mortal: Mortal, expected: dict[str, bytes], tmp_path: Path
) -> None:
    usual = mortal.merge(tmp_path / "whole").seconds
    shutil.rmtree(tmp_path / "whole")
    delay = random.Random(seed).uniform(0, usual)
    mortal.merge(tmp_path / "out", seconds=delay)
    if (tmp_path / "out").exists():
        assert contents(tmp_path / "out") == expected
    survives(plan, mortal, tmp_path / "out", expected)


@pytest.mark.sweep
def test_killed_again_and_again_it_still_arrives(
    plan: Plan, mortal: Mortal, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Each try gets a little further, or at least no less far, if it dies before it has hashed."""
    largest = max(tensor.nbytes for shard in plan.shards for tensor in shard.tensors)
    header = max(len(shard.header) for shard in plan.shards)
    counts = []
    for _ in range(5 * len(every_tensor(plan))):
        end = mortal.merge(tmp_path / "out", bytes=largest + 2 * len(plan.shards) * header)
        counts.append(len(journaled(tmp_path / "out")))
        if not end.killed:
            break
    assert not end.killed
    assert len(counts) > 2
    assert counts[:-1] == sorted(counts[:-1])
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("seed", seeds(8))
def test_a_bit_that_flips_in_what_was_finished_costs_one_tensor(
    seed: int, plan: Plan, mortal: Mortal, expected: dict[str, bytes], tmp_path: Path
) -> None:
    draw = random.Random(seed)
    out = tmp_path / "out"
    assert mortal.merge(out, bytes=int(0.8 * plan.bytes_to_write)).killed
    finished = journaled(out)
    shard = draw.choice([s for s in plan.shards if {t.name for t in s.tensors} <= finished])
    tensor = draw.choice(shard.tensors)
    start = len(shard.header)
    for before in shard.tensors[: shard.tensors.index(tensor)]:
        start += before.nbytes
    flip(tmp_path / ".out.partial" / shard.name, start + draw.randrange(tensor.nbytes), draw)
    end = mortal.merge(out)
    assert contents(out) == expected
    assert set(end.computed) == set(every_tensor(plan)) - finished | {tensor.name}


def flip(file: Path, position: int, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


@pytest.mark.parametrize("seed", seeds(8))
def test_a_damaged_journal_or_header_never_changes_the_result(
    seed: int, plan: Plan, mortal: Mortal, expected: dict[str, bytes], tmp_path: Path
) -> None:
    draw = random.Random(seed)
    assert mortal.merge(tmp_path / "out", bytes=int(0.9 * plan.bytes_to_write)).killed
    partial = tmp_path / ".out.partial"
    journal = partial / "journal.jsonl"
    kind = seed % 4
    if kind == 0:
        flip(journal, draw.randrange(journal.stat().st_size), draw)
    elif kind == 1:
        os.truncate(journal, draw.randrange(journal.stat().st_size))
    elif kind == 2:
        flip(partial / plan.shards[0].name, draw.randrange(len(plan.shards[0].header)), draw)
    else:
        os.truncate(partial / plan.shards[0].name, draw.randrange(plan.shards[0].nbytes))
    end = mortal.merge(tmp_path / "out")
    assert (end.exit_code, end.error) == (0, "")
    assert contents(tmp_path / "out") == expected


def test_what_is_kept_while_it_is_hashed_may_not_change(
    plan: Plan, mortal: Mortal, tmp_path: Path
) -> None:
    """Of a shard with a gap, what follows the gap is checked first and read again later."""
    out = tmp_path / "out"
    assert mortal.merge(out, bytes=int(0.8 * plan.bytes_to_write)).killed
    shard = next(s for s in plan.shards if len(s.tensors) > 2)
    partial = tmp_path / ".out.partial" / shard.name
    flip(partial, len(shard.header), random.Random(0))

    before = sum(s.nbytes for s in plan.shards[: plan.shards.index(shard)])

    def spoil(done: int, total: int) -> None:
        if done <= before:
            return
        with open(partial, "r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x77")

    with pytest.raises(MergeError, match="changed while the merge went on; run the same command"):
        merge(plan, out, device="cpu", progress=spoil, tuning=Tuning(chunk=16384))
    assert not out.exists()


def test_a_changed_source_or_recipe_never_resumes_into_a_mix(
    plan_of: Make, models: dict[str, Path], plan: Plan, mortal: Mortal, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(models["b"], tmp_path / "other"))
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    sources = {"a": models["a"], "b": other}
    changed = {
        "source": plan_of(
            {"name": "ties"}, models["base"], sources, output={"shard_size": "150KB"}
        ),
        "parameter": plan_of(
            {"name": "ties", "density": 0.3},
            models["base"],
            {name: models[name] for name in "ab"},
            output={"shard_size": "150KB"},
        ),
    }
    for what, now in changed.items():
        out = tmp_path / what / "out"
        out.parent.mkdir()
        assert mortal.merge(out, bytes=int(0.9 * plan.bytes_to_write)).killed
        assert journaled(out)
        whole = contents(merge(now, tmp_path / f"{what} whole", device="cpu"))
        assert contents(merge(now, out, device="cpu")) == whole


def test_everything_is_on_the_disk_before_the_manifest_and_the_manifest_before_the_name(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename, write_text = os.fsync, os.rename, Path.write_text

    def synced(file: int) -> None:
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{file}')).name}")
        fsync(file)

    def renamed(old: Path, new: Path) -> None:
        events.append(f"rename {old.name} {new.name}")
        rename(old, new)

    def wrote(self: Path, *arguments: Any, **named: Any) -> int:
        events.append(f"write {self.name}")
        return write_text(self, *arguments, **named)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(Path, "write_text", wrote)
    out = merge(plan, tmp_path / "new" / "out", device="cpu")
    manifest = events.index("write mergeops.json")
    assert events[manifest:] == [
        "write mergeops.json",
        "sync mergeops.json",
        "sync .out.partial",
        "rename .out.partial out",
        "sync new",
        "sync out",
    ]
    others = {path.name for path in out.iterdir()} - {"mergeops.json"}
    assert {f"sync {name}" for name in others} <= set(events[:manifest])
    # The names of the new directories, too.
    assert events[:2] == ["sync new", f"sync {tmp_path.name}"]


def test_killed_after_the_rename_the_next_try_takes_the_lock_away(
    plan: Plan, mortal: Mortal, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    # The last steps are the rename, a sync, the lock's removal and its sync.
    removal = mortal.merge(tmp_path / "whole", step=10**6).steps - 2
    assert mortal.merge(out, step=removal).killed
    assert (out / "lock").exists()
    assert not mortal.merge(out).computed
    assert contents(out) == expected


@pytest.mark.parametrize("kind", ["shard", "manifest"])
def test_a_file_that_could_not_be_synced_is_not_believed_by_the_next_try(
    kind: str, plan: Plan, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """As when the disk lost it: the system shows the bytes until it drops them from memory."""
    name = plan.shards[0].name if kind == "shard" else "mergeops.json"
    fsync = os.fsync

    def failing(file: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{file}")).name == name:
            raise OSError(errno.EIO, "Input/output error")
        fsync(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(MergeError, match="cannot be written: Input/output error"):
            merge(plan, tmp_path / "out", device="cpu")
    assert not (tmp_path / ".out.partial" / name).exists()
    assert contents(merge(plan, tmp_path / "out", device="cpu")) == expected


def test_a_manifest_of_a_killed_try_is_synced_before_it_gets_its_name(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*paths: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            merge(plan, tmp_path / "out", device="cpu")
    synced, fsync = [], os.fsync

    def recorded(file: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        fsync(file)

    monkeypatch.setattr(os, "fsync", recorded)
    merge(plan, tmp_path / "out", device="cpu")
    assert synced[0] == "mergeops.json"


def test_a_merge_that_is_given_up_takes_another_name_before_it_is_deleted(
    plan: Plan, models: dict[str, Path], plan_of: Make, tmp_path: Path
) -> None:
    doomed: list[Path] = []

    def rmtree(path: Path, **_: bool) -> None:
        doomed.append(path)
        assert not (tmp_path / ".out.partial").exists()
        assert (path / "lock").exists()

    cut = copied(models, tmp_path / "cut")
    changing = plan_of({"name": "linear"}, None, {"a": cut})
    os.utime(cut / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(working_directory.shutil, "rmtree", rmtree)
        with pytest.raises(SourceError, match="changed after the merge was planned"):
            merge(changing, tmp_path / "out", device="cpu")
    assert doomed[0].name.startswith(".out.partial.") and doomed[0].name.endswith(".deleting")


def test_who_waits_for_another_process_says_so(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    with open(partial / "lock", "w") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = pool.submit(merge, plan, tmp_path / "out", device="cpu")
        last = time.monotonic() + 60
        while not caplog.messages and time.monotonic() < last:
            time.sleep(0.01)
        assert caplog.messages == [f"another process is merging in {partial}; waiting for it"]
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert contents(waiting.result(60)) == expected
    assert len(caplog.messages) == 1


def test_a_working_directory_of_somebody_else_is_left_alone(plan: Plan, tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "mine.txt").write_text("precious")
    with pytest.raises(MergeError, match=r"out\.partial holds mine\.txt, which no merge put there"):
        merge(plan, tmp_path / "out", device="cpu")
    assert contents(partial) == {"mine.txt": b"precious"}


@pytest.mark.parametrize("name", ["model.safetensors", "journal.jsonl", "."])
def test_a_link_in_the_working_directory_is_not_written_through(
    plan: Plan, tmp_path: Path, name: str
) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "precious").write_text("untouched")
    partial = tmp_path / ".out.partial"
    if name == ".":
        partial.symlink_to(elsewhere)
    else:
        partial.mkdir()
        (partial / working_directory.LOCK).touch()
        (partial / name).symlink_to(elsewhere / "precious")
    with pytest.raises(MergeError, match="is a link, or no file, and a merge would write where"):
        merge(plan, tmp_path / "out", device="cpu")
    assert contents(elsewhere) == {"precious": b"untouched"}


def test_unfinished_work_of_another_merge_is_replaced_and_that_is_said(
    plan: Plan,
    models: dict[str, Path],
    plan_of: Make,
    mortal: Mortal,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    assert mortal.merge(out, bytes=plan.bytes_to_write // 2).killed
    other = plan_of({"name": "linear"}, None, {name: models[name] for name in "ab"})
    merge(other, out, device="cpu")
    (said,) = caplog.messages
    assert said == (
        f"{tmp_path}/.out.partial held the unfinished work of another merge (plan "
        f"{plan.digest[:12]}), which is replaced"
    )
    assert verify_checkpoint(out) == []


def test_a_directory_that_cannot_be_deleted_yet_hides_no_error(
    models: dict[str, Path], plan_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where it holds the lock's file as long as that is open."""

    def rmdir(path: Any, **_: Any) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)

    cut = copied(models, tmp_path / "cut")
    changing = plan_of({"name": "linear"}, None, {"a": cut})
    os.utime(cut / "model.safetensors")
    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(SourceError, match="changed after the merge was planned"):
        merge(changing, tmp_path / "out", device="cpu")
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")]
    assert len(left) == 1 and left[0].endswith(working_directory.DOOMED)


@pytest.mark.parametrize("what", ["CUDA out of memory. Tried", "CUDA error: no kernel image. Try"])
def test_a_device_that_fails_is_one_line_and_another_one_goes_on(
    what: str,
    plan: Plan,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise RuntimeError(f"{what} 20.00 MiB. GPU 0 has a total capacity.\nCompile with")

    with monkeypatch.context() as patch:
        patch.setattr(execute, "choose_devices", lambda _: ("cuda:0", "cuda:1"))
        patch.setattr(execute, "TensorStream", Failing)
        with pytest.raises(MergeError) as caught:
            merge(plan, tmp_path / "out")
    assert str(caught.value) == (
        f"{tmp_path}/out cannot be made on cuda:0, cuda:1: {what} 20.00 MiB; what is done so far "
        "is kept, and the same command goes on from there, also on another device "
        "(output.device=cpu)"
    )
    assert contents(merge(plan, tmp_path / "out", device="cpu")) == expected


def test_other_errors_of_torch_are_not_the_devices(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("The size of tensor a (2) must match")

    monkeypatch.setattr(execute, "choose_devices", lambda _: ("cuda:0",))
    monkeypatch.setattr(execute, "TensorStream", Failing)
    with pytest.raises(RuntimeError, match="The size of tensor"):
        merge(plan, tmp_path / "out")


@pytest.fixture
def small_disk(plan: Plan, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, not much larger than the merge."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = plan.bytes_to_write + (1 << 19)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode != 0:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_a_disk_that_fills_up_stops_the_merge_and_loses_nothing(
    share: float, small_disk: Path, mortal: Mortal, plan: Plan, expected: dict[str, bytes]
) -> None:
    out = small_disk / "out"
    end = mortal.merge(out, fill=(share, str(small_disk / "ballast")))
    assert end.exit_code == MergeError.exit_code
    assert "cannot be written: No space left on device; what is done so far is kept" in end.error
    assert "\n" not in end.error
    assert not out.exists()
    again = mortal.merge(out)
    assert again.exit_code == MergeError.exit_code
    assert "No space left on device" in again.error or "are free there" in again.error
    (small_disk / "ballast").unlink()
    survives(plan, mortal, out, expected)


@pytest.mark.parametrize("bind", [False, True])
def test_a_mount_point_is_refused_before_work_and_what_to_do_works(
    bind: bool, small_disk: Path, plan: Plan, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """A bind mount on its own file system looks like any other directory."""
    point = small_disk
    if bind:
        point = small_disk / "point"
        point.mkdir()
        subprocess.run(["mount", "--bind", str(point), str(point)], check=True)
    (tmp_path / "link").symlink_to(point)
    try:
        for out in (point, tmp_path / "link"):
            with pytest.raises(MergeError, match=r" is a mount point, .* e\.g\. .*/merge$"):
                merge(plan, out, device="cpu")
        assert not list(point.iterdir())
        assert not list(point.parent.glob(".*.partial"))
        assert contents(merge(plan, point / "merge", device="cpu")) == expected
    finally:
        if bind:
            subprocess.run(["umount", "--lazy", str(point)], check=True)


@pytest.mark.parametrize("exists", [False, True])
def test_a_link_is_followed(
    exists: bool, plan: Plan, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    if exists:
        (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    assert merge(plan, tmp_path / "link", device="cpu") == tmp_path / "link"
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "target") == expected


def test_a_limit_on_files_is_one_line_and_the_merge_goes_on_without_it(
    mortal: Mortal, plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    smallest = min(shard.nbytes for shard in plan.shards)
    end = mortal.merge(tmp_path / "out", limit=smallest - 1)
    assert end.exit_code == MergeError.exit_code
    assert "cannot be written: File too large; what is done so far is kept" in end.error
    assert not (tmp_path / "out").exists()
    survives(plan, mortal, tmp_path / "out", expected)


def copied(models: dict[str, Path], folder: Path) -> Path:
    return Path(shutil.copytree(models["a"], folder / "moving"))


def test_a_source_that_is_cut_while_it_is_read(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    moving = copied(models, tmp_path)
    plan = plan_of({"name": "linear"}, None, {"moving": moving, "b": models["b"]})
    weights = moving / "model.safetensors"

    def cut(done: int, total: int) -> None:
        os.truncate(weights, 3000)

    with pytest.raises(SourceError, match=r"cut while being read|changed after the merge was"):
        merge(plan, tmp_path / "out", progress=cut, device="cpu", tuning=Tuning(16384, 1))
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fails_to_read_is_named_and_what_is_done_is_kept(
    plan_of: Make, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of({"name": "linear"}, None, {name: models[name] for name in "ab"})
    expected = contents(merge(plan, tmp_path / "whole", device="cpu"))
    preadv, left = os.preadv, [20]

    def failing(file: int, buffers: Any, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(5, "Input/output error")
        return preadv(file, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing)
        match = r"model.safetensors cannot be read at byte \d+, tensor .*: Input/output error"
        with pytest.raises(SourceError, match=match):
            merge(plan, tmp_path / "out", device="cpu", tuning=Tuning(16384, 1))
    assert journaled(tmp_path / "out")
    assert contents(merge(plan, tmp_path / "out", device="cpu")) == expected


def write_in_place(file: Path) -> None:
    """Change a byte, and set the time of the change back."""
    before = file.stat()
    with open(file, "r+b") as content:
        content.seek(-2, 2)
        content.write(b"\x11")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_file(file: Path) -> None:
    """Put another file of the same size and time in its place."""
    before = file.stat()
    other = file.with_name("other")
    other.write_bytes(file.read_bytes()[:-2] + b"\x11\x11")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, file)


@pytest.mark.parametrize("change", [write_in_place, replace_file])
def test_a_change_that_hides_its_time_is_noticed(
    change: Callable[[Path], None], plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    moving = copied(models, tmp_path)
    plan = plan_of({"name": "linear"}, None, {"moving": moving, "b": models["b"]})
    change(moving / "model.safetensors")
    with pytest.raises(SourceError, match="moving/model.safetensors changed after the merge was"):
        merge(plan, tmp_path / "out", device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["moving"]


def test_a_source_that_changes_between_hash_and_plan_is_refused(
    models: dict[str, Path], tmp_path: Path
) -> None:
    from mergeops.recipe.recipe import Recipe
    from mergeops.sources.resolution import resolve

    moving = copied(models, tmp_path)
    sources = {"moving": {"uri": str(moving)}}
    recipe = Recipe.from_dict({"method": {"name": "linear"}, "sources": sources})
    found = resolve(recipe, cache_dir=tmp_path / "cache")
    make_plan(recipe, found.base, found.sources)
    write_in_place(moving / "model.safetensors")
    with pytest.raises(SourceError, match="model.safetensors changed after it was hashed; run"):
        make_plan(recipe, found.base, found.sources)
    again = resolve(recipe, cache_dir=tmp_path / "cache")
    assert again.sources["moving"].sha256 != found.sources["moving"].sha256


def test_verify_finds_a_merge_that_was_killed_and_resumed_whole(
    plan: Plan, mortal: Mortal, tmp_path: Path
) -> None:
    assert mortal.merge(tmp_path / "out", bytes=plan.bytes_to_write // 2).killed
    assert "mergeops.json is missing" in verify_checkpoint(tmp_path / ".out.partial")[0]
    assert mortal.merge(tmp_path / "out").exit_code == 0
    assert verify_checkpoint(tmp_path / "out") == []


def test_a_journal_line_that_is_nested_without_end_ends_the_journal(tmp_path: Path) -> None:
    line = {"file": "f", "tensor": "t", "xxh3": "0"}
    lines = [json.dumps({"plan_digest": "p"}), json.dumps(line), "[" * 50_000, json.dumps(line)]
    (tmp_path / "journal.jsonl").write_text("\n".join(lines) + "\n")
    journal = Journal(tmp_path, "p")
    journal.close()
    assert journal.finished == {("f", "t"): "0"}
