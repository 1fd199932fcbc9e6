"""What gc may delete: each rule that keeps something, and that nothing else is kept."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from support.tracking_case import Case, sha256

from mergeops.cleanup import garbage as garbage_module
from mergeops.cleanup.disk_usage import usage
from mergeops.cleanup.garbage import KeptItem, collect, look, parse_age
from mergeops.cleanup.needed import references
from mergeops.engine import MERGING, note_pace
from mergeops.errors import ConfigError
from mergeops.promotion.confirm import checkpoint_of
from mergeops.store.connection import Tracking
from mergeops.store.lock import only_one
from mergeops.tracking.pending import Pending, folder_of

HOUR, DAY = 3600, 86400


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work" / "merges").mkdir(parents=True)
    return tmp_path / "work"


def made(work: Path, plan: str, *, age_s: float = 30 * DAY, sources: tuple[str, ...] = ()) -> Path:
    """A finished merge of the plan, as the engine leaves it."""
    folder = work / "merges" / sha256(plan)[:16]
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(5000))
    manifest = {
        "format": 1,
        "plan_digest": sha256(plan),
        "sources": [{"name": s, "sha256": sha256(f"weights of {s}")} for s in sources],
        "files": {},
    }
    (folder / "mergeops.json").write_text(json.dumps(manifest))
    return aged(folder, age_s)


def partial(work: Path, plan: str, *, age_s: float = 30 * DAY) -> Path:
    folder = work / "merges" / f".{sha256(plan)[:16]}.partial"
    folder.mkdir()
    (folder / "lock").touch()
    return aged(folder, age_s)


def aged(folder: Path, age_s: float) -> Path:
    for path in [*folder.iterdir(), folder]:
        os.utime(path, (time.time() - age_s,) * 2)
    return folder


def run_of(tracking: Tracking, plan: str, status: str = "FINISHED", **tags: str) -> str:
    """A trial's run."""
    own = {
        "mergeops.role": "merge",
        "mergeops.plan_digest": sha256(plan),
        "mergeops.weights_sha256": sha256(f"weights of {plan}"),
        **{f"mergeops.{name}": value for name, value in tags.items()},
    }
    run_id = str(tracking.client.create_run(tracking.experiment_id, tags=own).info.run_id)
    if status != "RUNNING":
        tracking.client.set_terminated(run_id, status)
    return run_id


def version_of(tracking: Tracking, plan: str, status: str, alias: str | None = None) -> None:
    """A registered version of the plan."""
    client = tracking.client
    if not client.search_registered_models("name = 'skills'"):
        client.create_registered_model("skills")
    tags = {
        "mergeops.role": "merge",
        "mergeops.status": status,
        "mergeops.plan_digest": sha256(plan),
    }
    made = client.create_model_version("skills", "s3://bucket/model", tags=tags)
    if alias:
        client.set_registered_model_alias("skills", alias, made.version)


def seen(work: Path, tracking: Tracking, older_than_s: float = 7 * DAY) -> dict[Path, KeptItem]:
    return {item.path: item for item in look(work, tracking, older_than_s)}


@pytest.mark.parametrize(
    ("status", "alias", "reason"),
    [
        ("promoted", "champion", "skills/1 is @champion"),
        ("superseded", "previous", "skills/1 is @previous"),
        ("rejected", "mine", "skills/1 is @mine"),
        ("candidate", None, "skills/1 is candidate"),
        ("promoted", None, "skills/1 is promoted"),
    ],
)
def test_what_a_version_needs_is_kept(
    work: Path, tracking: Tracking, status: str, alias: str | None, reason: str
) -> None:
    folder = made(work, "a")
    run_of(tracking, "a")
    version_of(tracking, "a", status, alias)
    item = seen(work, tracking)[folder]
    assert (item.is_garbage, item.reason) == (False, reason)


def test_a_version_that_somebody_registered_in_mlflow_keeps_its_merge(
    work: Path, tracking: Tracking
) -> None:
    client = tracking.client
    by_model, by_run = made(work, "a"), made(work, "b")
    model = client.create_logged_model(tracking.experiment_id, name="merge")
    run_of(tracking, "a", model_id=model.model_id)
    run_id = run_of(tracking, "b")
    assert seen(work, tracking)[by_model].is_garbage
    client.create_registered_model("prod")
    client.create_model_version("prod", f"models:/{model.model_id}")
    client.create_model_version("prod", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("prod", "production", "1")
    found = seen(work, tracking)
    assert (found[by_model].is_garbage, found[by_model].reason) == (False, "prod/1 is @production")
    assert (found[by_run].is_garbage, found[by_run].reason) == (False, "prod/2 is registered")


def test_runs_of_the_last_of_many_experiments_are_found(
    work: Path, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(work, "a")
    run_of(tracking, "a")
    for number in range(3):
        tracking.client.create_experiment(f"newer {number}")
    search = MlflowClient.search_experiments
    two_at_a_time = functools.partialmethod(search, max_results=2)
    monkeypatch.setattr(MlflowClient, "search_experiments", two_at_a_time)
    assert len(tracking.client.search_experiments()) == 2
    assert seen(work, tracking)[folder].is_garbage


@pytest.mark.parametrize("status", ["rejected", "superseded"])
def test_an_old_merge_of_a_version_that_nobody_wants_goes(
    work: Path, tracking: Tracking, status: str
) -> None:
    folder = made(work, "a")
    run_of(tracking, "a")
    version_of(tracking, "a", status)
    item = seen(work, tracking)[folder]
    assert (item.is_garbage, item.reason) == (True, f"skills/1 is {status}")
    young = made(work, "b", age_s=HOUR)
    run_of(tracking, "b")
    assert not seen(work, tracking)[young].is_garbage
    assert seen(work, tracking, HOUR / 2)[young].is_garbage


def test_an_alias_that_moves_while_versions_are_judged_is_not_missed_at_both(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_of(tracking, "a", "superseded")
    version_of(tracking, "b", "superseded")
    plans = {sha256("a"), sha256("b")}
    first, second = ({sha256("a"): "1", sha256("b"): "2"}[plan] for plan in plans)
    # Each answer has it at the version that is not judged just then.
    places = iter([second, first])

    def answer(name: str) -> SimpleNamespace:
        return SimpleNamespace(aliases={"champion": next(places)})

    monkeypatch.setattr(tracking.client, "get_registered_model", answer)
    needed = [one.needed for one in references(tracking, plans).values()]
    assert sorted(needed) == ["", f"skills/{second} is @champion"]


def test_a_merge_goes_with_its_deleted_run_but_not_while_a_run_is_running(
    work: Path, tracking: Tracking
) -> None:
    deleted, running, failed = made(work, "a"), made(work, "b"), made(work, "c")
    tracking.client.delete_run(run_of(tracking, "a"))
    run_id = run_of(tracking, "b", "RUNNING")
    run_of(tracking, "c", "FAILED")
    found = seen(work, tracking)
    assert found[deleted].is_garbage
    assert found[deleted].reason == "its run is deleted in MLflow"
    assert not found[running].is_garbage
    assert found[running].reason == f"run {run_id[:8]} is RUNNING"
    assert found[failed].is_garbage


def test_parents_of_a_running_trial_and_of_a_kept_merge_are_kept(
    work: Path, tracking: Tracking
) -> None:
    parent, grandparent = made(work, "parent", sources=("grandparent",)), made(work, "grandparent")
    child, ingredient = made(work, "child", sources=("parent",)), made(work, "ingredient")
    for plan in ("parent", "grandparent", "child"):
        run_of(tracking, plan)
    version_of(tracking, "child", "candidate")
    used = run_of(tracking, "ingredient")
    run_of(tracking, "another", "RUNNING", parent_run_ids=used)
    found = seen(work, tracking)
    assert not any(found[p].is_garbage for p in (parent, grandparent, child, ingredient))
    assert found[parent].reason == f"a parent of {child.name}, which is kept"
    assert found[ingredient].reason == f"a trial that is RUNNING merges run {used[:8]}"


def test_a_trial_that_waits_for_sync_keeps_its_merge(work: Path, case: Case) -> None:
    folder = made(work, "a")
    run_of(case.tracking, "a", "FAILED")
    kept = Pending(
        folder=folder_of(work, sha256("a")),
        name="ties",
        plan_digest=sha256("a"),
        recipe=case.recipe,
        plan={},
        sources=case.sources,
        base=case.base,
        uri=case.tracking.uri,
        checkpoint=folder,
    )
    kept.write()
    found = seen(work, case.tracking)
    assert (found[folder].is_garbage, found[folder].reason) == (
        False,
        "ties waits for mergeops sync",
    )
    assert not found[work / "pending"].is_garbage


def test_what_this_server_knows_nothing_of_is_kept(work: Path, tracking: Tracking) -> None:
    folder = made(work, "of another server")
    (work / "merges" / "notes").mkdir()
    (work / "merges" / "link").symlink_to(folder)
    (work / "thesis").mkdir()
    note_pace(work, MERGING, 1e6, 1.0)
    found = seen(work, tracking)
    assert not any(item.is_garbage for item in found.values())
    assert found[folder].reason == "this server knows no run of it; another one may"
    assert found[work / "thesis"].reason == "not made by mergeops"
    assert found[work / "pace.json"].reason == "how fast this machine has been; small"


def test_a_stale_partial_goes_unless_a_process_writes_it(work: Path, tracking: Tracking) -> None:
    stale, young = partial(work, "a"), partial(work, "b", age_s=HOUR)
    assert {p: i.is_garbage for p, i in seen(work, tracking).items()} == {stale: True, young: False}
    with (stale / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        item = seen(work, tracking)[stale]
        assert (item.is_garbage, item.reason) == (False, "a running process writes it")
    assert seen(work, tracking)[stale].is_garbage


@pytest.fixture
def garbage(work: Path, tracking: Tracking) -> Callable[[], Path]:
    def make() -> Path:
        folder = made(work, "a")
        run_of(tracking, "a")
        return folder

    return make


def test_collecting_deletes_the_garbage_and_nothing_else(
    work: Path, tracking: Tracking, garbage: Callable[[], Path]
) -> None:
    gone, stale, kept = garbage(), partial(work, "p"), made(work, "kept")
    items = collect(look(work, tracking, DAY), work, tracking, DAY)
    assert {item.path for item in items if item.is_garbage} == {gone, stale}
    assert sorted((work / "merges").iterdir()) == [kept]


def test_what_became_needed_while_the_user_thought_is_kept(
    work: Path, tracking: Tracking, garbage: Callable[[], Path]
) -> None:
    folder = garbage()
    items = look(work, tracking, DAY)
    version_of(tracking, "a", "candidate")
    (result,) = collect(items, work, tracking, DAY)
    assert (result.is_garbage, result.reason) == (False, "skills/1 is candidate")
    assert folder.is_dir()


def test_a_merge_whose_trial_is_at_work_here_is_kept(
    work: Path, tracking: Tracking, garbage: Callable[[], Path]
) -> None:
    folder = garbage()
    items = look(work, tracking, DAY)
    with only_one("the trial", tracking.uri, tracking.experiment_id, sha256("a")):
        (result,) = collect(items, work, tracking, DAY)
    assert not result.is_garbage
    assert result.reason.startswith("in use: the merge ")
    assert folder.is_dir()


READER = """
import sys
from pathlib import Path
from mergeops.sources import resolve_uri
resolve_uri(sys.argv[1], cache_dir=Path(sys.argv[2]))
print("found", flush=True)
sys.stdin.read()
"""


def test_a_merge_that_another_process_reads_by_its_path_is_kept(
    work: Path, tracking: Tracking, checkpoint: Path, tmp_path: Path, garbage: Callable[[], Path]
) -> None:
    folder = garbage()
    for file in checkpoint.iterdir():
        if file.name != "mergeops.json":
            shutil.copy(file, folder)
    aged(folder, 30 * DAY)
    command = [sys.executable, "-c", READER, str(folder), str(tmp_path / "cache")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "found\n"
        (kept,) = collect(look(work, tracking, DAY), work, tracking, DAY)
        assert (kept.is_garbage, kept.reason) == (
            False,
            "in use: a running process reads or writes it",
        )
        assert (folder / "model.safetensors").is_file()
        reader.communicate("")
    (gone,) = collect(look(work, tracking, DAY), work, tracking, DAY)
    assert gone.is_garbage
    assert not folder.exists()


def test_a_candidate_found_in_the_work_directory_is_held(
    work: Path, tracking: Tracking, case: Case, garbage: Callable[[], Path]
) -> None:
    folder = garbage()
    tools: Any = SimpleNamespace(work_dir=work)
    candidate: Any = SimpleNamespace(plan_digest=sha256("a"))
    assert checkpoint_of(tools, case.recipe, "skills", candidate) == folder
    (kept,) = collect(look(work, tracking, DAY), work, tracking, DAY)
    assert kept.reason.startswith("in use")
    assert folder.is_dir()


def test_what_became_needed_before_it_was_locked_is_kept(
    work: Path,
    tracking: Tracking,
    garbage: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, stale = garbage(), partial(work, "p")
    items = look(work, tracking, DAY)
    real = garbage_module.alone

    def promoted_meanwhile(path: Path) -> Any:
        if path == folder:
            version_of(tracking, "a", "promoted", "champion")
        else:
            os.utime(stale / "lock")
        return real(path)

    monkeypatch.setattr(garbage_module, "alone", promoted_meanwhile)
    results = {item.path: item.reason for item in collect(items, work, tracking, DAY)}
    assert results[folder] == "skills/1 is @champion"
    assert results[stale] == "written lately; its command goes on from here"
    assert folder.is_dir()
    assert stale.is_dir()


def test_what_goes_away_meanwhile_is_passed_over_and_what_cannot_be_read_is_said(
    work: Path, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, foreign = partial(work, "a"), made(work, "b")
    real = garbage_module.usage

    def as_found(path: Path) -> Any:
        if path == ended:
            shutil.rmtree(ended)
        if path == foreign:
            raise PermissionError(13, "Permission denied", str(foreign / "secret"))
        return real(path)

    monkeypatch.setattr(garbage_module, "usage", as_found)
    (item,) = look(work, tracking, DAY)
    assert (item.path, item.is_garbage) == (foreign, False)
    assert item.reason == f"cannot be read: Permission denied ({foreign / 'secret'})"


def test_a_file_that_goes_away_while_it_is_measured_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stays").write_bytes(bytes(5000))
    monkeypatch.setattr(os, "walk", lambda top, **_: [(str(top), ["gone"], ["stays", "lock"])])
    assert usage(tmp_path).nbytes == (tmp_path / "stays").stat().st_blocks * 512


def test_bytes_that_mlflow_holds_too_are_not_counted_as_freed(
    work: Path, tracking: Tracking, tmp_path: Path, garbage: Callable[[], Path]
) -> None:
    folder = garbage()
    os.link(folder / "model.safetensors", tmp_path / "in_mlflow")
    (item,) = look(work, tracking, DAY)
    held = (folder / "model.safetensors").stat().st_blocks * 512
    assert item.nbytes - item.freed == held > 0


def test_ages_are_numbers_with_a_unit() -> None:
    assert [parse_age(text) for text in ("0m", "90m", "12h", "7d", "2w", "1.5h")] == [
        0,
        5400,
        43200,
        604800,
        1209600,
        5400,
    ]
    for wrong in ("7", "d", "-1d", "1y", ""):
        with pytest.raises(ConfigError, match="write a number and m, h, d or w"):
            parse_age(wrong)
