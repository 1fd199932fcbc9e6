"""What gc does with activations, gates, rows, noise and applied adapters, which are made again."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
from support.tracking_case import sha256

from mergeops.activations import find
from mergeops.cleanup import KeptItem, collect, look
from mergeops.store import Tracking

DAY = 86400


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work" / "merges").mkdir(parents=True)
    return tmp_path / "work"


def aged(folder: Path, days: float) -> Path:
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (time.time() - days * DAY,) * 2)
    return folder


def files(folder: Path, *, days: float = 30, **content: str) -> Path:
    """A directory of files, by their stems, each of 5 kB beside its text."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(5000))
    for name, text in content.items():
        (folder / f"{name}.json").write_text(text)
    return aged(folder, days)


def measured(work: Path, weights: str, *, name: str = "", days: float = 30) -> Path:
    about = {"kind": "gram", "weights_sha256": sha256(weights)}
    folder = work / "activations" / (name or sha256(weights)[:24])
    return files(folder, days=days, measured=json.dumps(about))


def merge(work: Path, plan: str, **content: object) -> Path:
    manifest = json.dumps({"format": 1, "plan_digest": sha256(plan), "files": {}, **content})
    return files(work / "merges" / sha256(plan)[:16], mergeops=manifest)


def seen(work: Path, tracking: Tracking) -> dict[Path, KeptItem]:
    return {item.path: item for item in look(work, tracking, DAY)}


def test_activations_of_a_kept_merge_stay_and_others_go_when_they_are_old(
    work: Path, tracking: Tracking
) -> None:
    merge(work, "kept", sources=[{"sha256": sha256("math")}])
    needed, old = measured(work, "math"), measured(work, "code")
    young = measured(work, "dates", days=0.5)
    found = seen(work, tracking)
    assert found[needed].reason.endswith("a source of a merge that is kept")
    assert found[old].is_garbage and found[old].nbytes >= 5000
    assert found[old].reason.endswith("made again where it is needed")
    assert not found[young].is_garbage
    assert found[old].kind == "activations" and work / "activations" not in found
    deleted = [
        item.path
        for item in collect(look(work, tracking, DAY), work, tracking, DAY)
        if item.is_garbage
    ]
    assert deleted == [old]
    assert not old.exists() and needed.exists() and young.exists()


def test_activations_that_a_process_found_are_in_use(
    work: Path, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = measured(work, "code")
    monkeypatch.setattr("mergeops.activations.kept_activations.place_of", lambda *_: folder)
    # What is found stays for the process, be it readable or not.
    find(work, "gram", "", "")
    items = collect(look(work, tracking, DAY), work, tracking, DAY)
    assert [(item.is_garbage, item.reason) for item in items] == [
        (False, "in use: a running process reads or writes it")
    ]


def test_a_measuring_that_was_killed_goes_and_one_at_work_stays(
    work: Path, tracking: Tracking
) -> None:
    killed = measured(work, "code", name=".abc.killed")
    at_work = measured(work, "code", name=".abc.at_work")
    lock = os.open(at_work, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        items = collect(look(work, tracking, DAY), work, tracking, DAY)
    finally:
        os.close(lock)
    assert {item.path.name: item.is_garbage for item in items} == {
        ".abc.killed": True,
        ".abc.at_work": False,
    }
    assert at_work.exists() and not killed.exists()


def test_gates_rows_and_noise_go_when_they_are_old_and_the_cache_counts_the_rest(
    work: Path, tracking: Tracking
) -> None:
    rows = files(work / "cache" / f"rows-{'a' * 32}")
    gates = files(work / "cache" / f"gates-{'b' * 32}", days=0.5)
    noise = files(work / "controls" / "c0ffee")
    (work / "cache" / "digests.json").write_bytes(bytes(3000))
    found = seen(work, tracking)
    assert {path: found[path].is_garbage for path in (rows, gates, noise)} == {
        rows: True,
        gates: False,
        noise: True,
    }
    assert found[rows].reason.startswith("rows of mergeops transplant")
    cache = found[work / "cache"]
    assert not cache.is_garbage and 3000 <= cache.nbytes < 5000
    items = collect(list(found.values()), work, tracking, DAY)
    assert {item.path for item in items if item.is_garbage} == {rows, noise}
    assert sorted(path.name for path in work.glob("*/*")) == [
        "digests.json",
        gates.name,
    ]


def test_an_adapter_that_was_applied_to_be_scored_goes_and_a_merge_of_adapters_stays(
    work: Path, tracking: Tracking
) -> None:
    adapter = {"sha256": sha256("lora"), "is_adapter": True}
    linear = {"method": {"name": "linear"}}
    applied = merge(work, "applied", **linear, sources=[adapter])
    merged = merge(work, "merged", **linear, sources=[adapter, adapter])
    on_base = merge(work, "on base", **linear, sources=[adapter], base={"sha256": "1"})
    found = seen(work, tracking)
    assert found[applied].is_garbage
    assert found[applied].reason.startswith("an adapter, applied to its base to be scored")
    assert not found[merged].is_garbage and not found[on_base].is_garbage


def test_a_killed_adapter_is_an_interrupted_merge(work: Path, tracking: Tracking) -> None:
    folder = files(work / "merges" / ".0123456789abcdef.merging")
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert seen(work, tracking)[folder].reason == "a running process writes it"
    os.close(lock)
    assert seen(work, tracking)[folder].reason.startswith("an interrupted merge")
    collect(look(work, tracking, DAY), work, tracking, DAY)
    assert not folder.exists()
