"""The sqlite file of MLflow: made whole or not at all, and looked at before MLflow opens it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.sweeps import seeds

from mergeops.errors import AwayError, TrackingError
from mergeops.recipe.settings import TrackingSpec
from mergeops.store import database
from mergeops.store.connection import connect, connect_to_read, reach

MAKER = Path(__file__).parent.parent / "support" / "database_makers.py"


@pytest.fixture(autouse=True)
def no_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken for being written just now."""
    monkeypatch.setattr(database, "WRITTEN_LATELY_S", 0)


def spec_of(path: Path) -> TrackingSpec:
    return TrackingSpec(uri=f"sqlite:///{path}", experiment="e", timeout_s=1)


def refusal(path: Path) -> str:
    """What every way to the database says, each at once."""
    said = set()
    for open_it in (connect, connect_to_read, reach):
        started = time.monotonic()
        with pytest.raises(TrackingError) as caught:
            open_it(spec_of(path))
        assert time.monotonic() - started < 10
        said.add(str(caught.value))
    assert len(said) == 1
    return said.pop()


def change(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_a_text_file_is_no_database_and_said_to_be_none_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("this is a text file and no database at all, whatever its name says")
    assert "cannot be read as an MLflow database: file is not a database" in refusal(path)


def test_a_directory_a_pipe_and_a_loop_of_links_are_no_database(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "but that is a directory" in refusal(tmp_path)
    assert "but that is no regular file" in refusal(tmp_path / "pipe")
    assert "but that is no regular file" in refusal(tmp_path / "loop")


def test_a_cut_database_is_one_line(template_database: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(template_database.read_bytes()[:20000])
    assert "cannot be read as an MLflow database" in refusal(path)


@pytest.mark.usefixtures("settled")
def test_a_database_without_tables_is_told_that_it_may_go(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.touch()
    assert "was never finished" in refusal(path)
    assert "holds no runs; remove it" in refusal(path)


@pytest.mark.usefixtures("settled")
def test_a_half_made_database_is_told_that_it_may_go(tmp_path: Path) -> None:
    # What MLflow leaves when it is killed in one of its migrations: some tables, no experiment.
    path = tmp_path / "mlflow.db"
    change(path, "CREATE TABLE experiments (experiment_id INTEGER)", "CREATE TABLE runs (id TEXT)")
    assert "holds no runs; remove it" in refusal(path)


@pytest.mark.usefixtures("settled")
def test_a_database_whose_last_migration_is_not_noted_is_half_made(
    template_database: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(template_database, path)
    change(
        path,
        "DELETE FROM experiment_tags",
        "DELETE FROM experiments",
        "UPDATE alembic_version SET version_num = 'c48cb773bb87'",
    )
    assert "holds no runs; remove it" in refusal(path)


@pytest.mark.usefixtures("settled")
def test_an_old_database_with_runs_is_never_told_to_go_nor_changed(
    template_database: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(template_database, path)
    change(
        path,
        "DROP TABLE logged_model_metrics",
        "UPDATE alembic_version SET version_num = 'c48cb773bb87'",
    )
    before = path.read_bytes()
    message = refusal(path)
    assert "has schema c48cb773bb87 of another version of MLflow; make a copy" in message
    assert f"mlflow db upgrade sqlite:///{path}" in message
    assert path.read_bytes() == before


@pytest.mark.usefixtures("settled")
def test_the_database_of_another_program_stays_untouched(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    change(path, "CREATE TABLE invoices (id INTEGER)")
    before = path.read_bytes()
    message = refusal(path)
    assert "is the database of another program (its tables: invoices)" in message
    assert path.read_bytes() == before


def test_a_database_that_another_program_locks_is_waited_for_and_then_named(
    template_database: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(template_database, path)
    holder = sqlite3.connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(AwayError, match="kept locked by another program for 1 s"):
            connect(spec_of(path))
    finally:
        holder.close()
    assert connect(spec_of(path)).experiment_id


def test_a_question_mark_begins_options_and_never_cuts_a_directory(
    template_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(template_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db?timeout=5"
    assert connect(TrackingSpec(uri=uri, experiment="e")).experiment_id
    (tmp_path / "why?").mkdir()
    monkeypatch.chdir(tmp_path / "why?")
    with pytest.raises(TrackingError, match="without one in its name"):
        connect(TrackingSpec(uri="sqlite:///mlflow.db", experiment="e"))
    assert sorted(os.listdir(tmp_path)) == ["mlflow.db", "why?"]


def test_a_registry_of_its_own_is_looked_at_too(template_database: Path, tmp_path: Path) -> None:
    shutil.copy(template_database, tmp_path / "mlflow.db")
    (tmp_path / "registry.db").write_text("no database at all, whatever its name says " * 9)
    spec = TrackingSpec(
        uri=f"sqlite:///{tmp_path}/mlflow.db", registry_uri=f"sqlite:///{tmp_path}/registry.db"
    )
    with pytest.raises(TrackingError, match=r"registry\.db cannot be read"):
        connect(spec)


class Makers:
    """Runs ``connect`` in processes of their own, which may die; see database_makers.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(MAKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def make(self, path: Path, *fates: dict[str, int]) -> list[dict[str, Any]]:
        """Connect once for each fate, all at the same time: killed at a statement, or a step."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"path": str(path), "fates": fates}) + "\n")
        self.process.stdin.flush()
        ends: list[dict[str, Any]] = json.loads(self.process.stdout.readline())
        return ends


@pytest.fixture(scope="module")
def makers() -> Any:
    running = Makers()
    yield running
    assert running.process.stdin
    running.process.stdin.close()
    running.process.wait()


@pytest.mark.slow
def test_two_that_make_it_at_once_make_one(makers: Makers, tmp_path: Path) -> None:
    ends = makers.make(tmp_path / "mlflow.db", {}, {})
    assert [end["status"] for end in ends] == [0, 0]
    assert ends[0]["experiment"] == ends[1]["experiment"]
    assert os.listdir(tmp_path) == ["mlflow.db"]


STATEMENTS = 300
"""About as many as MLflow 3.17 needs; a fate beyond the last lets the process live."""


def spread(seed: int, cases: int) -> int:
    return seed * STATEMENTS // cases + 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(24, always=1))
def test_whoever_is_killed_while_making_it_leaves_nothing_that_stops_the_next(
    seed: int, makers: Makers, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.db"
    fate = {"step": seed - 12} if seed >= 12 else {"statement": spread(seed, 12)}
    [end] = makers.make(path, fate)
    assert end["status"] in (0, -signal.SIGKILL)
    assert seed > 6 or end["status"] == -signal.SIGKILL
    [next_end] = makers.make(path, {})
    assert next_end["status"] == 0, next_end["error"]
    assert os.listdir(tmp_path) == ["mlflow.db"]
