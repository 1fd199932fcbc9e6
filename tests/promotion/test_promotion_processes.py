"""Real processes: 24 promoters at once, and promoters killed with SIGKILL after every write."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.mlflow_server import Server
from support.tracking_case import Case

from mergeops.promotion.audit import audit
from mergeops.promotion.champion import make_champion
from mergeops.promotion.changes import aliases, begun
from mergeops.recipe.settings import TrackingSpec
from mergeops.store.connection import connect

pytestmark = [pytest.mark.integration, pytest.mark.sweep]

SCRIPT = Path(__file__).parents[1] / "support" / "promotion_processes.py"
VERDICT = {"decision": "promote", "reasons": []}


def run(jobs: list[dict[str, Any]], **request: Any) -> list[str]:
    """What each process answered: done, an error's text, or killed."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps({"jobs": jobs, **request}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[str] = json.loads(done.stdout)
    return answers


# --- at once


@pytest.fixture(scope="module")
def crowd(
    three_versions: Case, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Case]]:
    """A real server with three versions of ``skills``."""
    database = Path(three_versions.tracking.uri.removeprefix("sqlite:///"))
    server = Server(tmp_path_factory.mktemp("crowd"), database)
    server.start()
    spec = TrackingSpec(uri=server.uri, experiment="merges", registered_model="skills")
    yield server, dataclasses.replace(three_versions, tracking=connect(spec))
    server.stop()


@pytest.mark.parametrize("own_machine", [False, True], ids=["one machine", "24 machines"])
def test_of_24_promoters_at_once_one_wins_and_23_are_refused_clearly(
    crowd: tuple[Server, Case], own_machine: bool
) -> None:
    server, case = crowd
    before = aliases(case.tracking, "skills").get("champion")
    others = [version for version in (1, 2, 3) if version != before]
    entries = len(audit(case.tracking, "skills"))
    jobs = [
        {
            "uri": server.uri,
            "version": others[i % 2],
            "expect": before or 0,
            "own_machine": own_machine,
        }
        for i in range(24)
    ]
    answers = run(jobs, at_once=True, wait_s=6)
    won = [i for i, answer in enumerate(answers) if answer == "done"]
    assert len(won) == 1, answers
    for i, answer in enumerate(answers):
        busy = "the champion of skills is being worked on by" in answer
        late = "skills@champion is version" in answer and "as expected" in answer
        assert i in won or busy or late, answer
    champion = jobs[won[0]]["version"]
    assert aliases(case.tracking, "skills")["champion"] == champion
    [entry] = audit(case.tracking, "skills")[entries:]
    assert (entry.kind, entry.came_from, entry.to) == ("promote", before, champion)
    names = {model.name for model in case.tracking.client.search_registered_models()}
    assert names == {"skills"}


# --- killed


@pytest.fixture(scope="module")
def two_champions(three_versions: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which version 2 is champion after version 1."""
    path = tmp_path_factory.mktemp("two") / "mlflow.db"
    shutil.copy(three_versions.tracking.uri.removeprefix("sqlite:///"), path)
    tracking = reopened(path)
    for version in (1, 2):
        make_champion(tracking, "skills", version, VERDICT, passed=True, user="ann")
    return path


def reopened(path: Path) -> Any:
    return connect(
        TrackingSpec(uri=f"sqlite:///{path}", experiment="merges", registered_model="skills")
    )


def stored_aliases(path: Path) -> dict[str, int]:
    """As any reader of the registry sees them."""
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT alias, version FROM registered_model_aliases")
        return {alias: int(version) for alias, version in rows}


def killed_at_every_write(database: Path, folder: Path, job: dict[str, Any]) -> list[Path]:
    """Databases left by processes killed after write 1, 2, ... until one lives."""
    paths, jobs = [], []
    for n in range(1, 15):
        path = folder / f"killed-{n}.db"
        shutil.copy(database, path)
        paths.append(path)
        jobs.append({**job, "uri": f"sqlite:///{path}", "killed_after": n})
    answers = run(jobs)
    lived = answers.index("done")
    assert set(answers[:lived]) == {"killed"}
    assert set(answers[lived:]) == {"done"}
    return paths[:lived]


def test_a_killed_promotion_is_complete_or_absent_and_the_next_command_completes_it(
    two_champions: Path, tmp_path: Path
) -> None:
    job = {"version": 3}
    left = killed_at_every_write(two_champions, tmp_path, job)
    # The lock, the evidence, the journal, both aliases, two statuses, audit, the journal again.
    assert len(left) >= 9
    seen = set()
    for path in left:
        there = stored_aliases(path)
        seen.add(there["champion"])
        # Whoever reads the champion sees the old one or the new one; the old is never lost.
        assert there["champion"] in (2, 3)
        if there["champion"] == 3:
            assert there["previous"] == 2
    assert seen == {2, 3}
    for path in (left[1], left[5], left[-2]):
        tracking = reopened(path)
        make_champion(tracking, "skills", 3, VERDICT, passed=True, user="ann")
        assert aliases(tracking, "skills") == {"champion": 3, "previous": 2}
        assert [(e.came_from, e.to) for e in audit(tracking, "skills")] == [
            (None, 1),
            (1, 2),
            (2, 3),
        ]
        assert begun(tracking, "skills") is None
        names = {model.name for model in tracking.client.search_registered_models()}
        assert names == {"skills"}
