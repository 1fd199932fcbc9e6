"""A command that is killed before any step that writes is completed by the same command.

MERGEOPS_POINTS=100 kills each command before so many of its steps, spread over all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.mortal_commands import CommandEnd, MortalCommands
from support.place_databases import PlaceDatabases, PostgresDatabases, SqliteFiles
from support.postgres_server import Postgres
from support.tracking_case import make_case

from mergeops.promotion import read_history
from mergeops.promotion.champion import make_champion
from mergeops.recipe.settings import TrackingSpec
from mergeops.sources import CHECKPOINT_URI
from mergeops.store.connection import Tracking, connect

pytestmark = [pytest.mark.integration, pytest.mark.sweep, pytest.mark.slow]

POINTS = int(os.environ.get("MERGEOPS_POINTS", "0"))
"""Of each command; 0 takes some of sqlite and fewer of PostgreSQL."""
RECIPE = """# @package _global_
sources: {a: {uri: a}, b: {uri: b}}
tracking: {heat_maps: false, register: unscored}
"""
TEXT = "\n\n".join(f"{i:03d} " + "the hare ran. " * 75 for i in range(16))
"""Passages enough for both parts, dev and confirm."""


class Sweep:
    """Kills commands at points spread over all their steps.

    Args:
        commands: runs them.
        databases: where they write.
        place: a user's directory without a database.
        folder: for copies of it.
        points: how many of each command.
    """

    def __init__(
        self,
        commands: MortalCommands,
        databases: PlaceDatabases,
        place: Path,
        folder: Path,
        points: int,
    ) -> None:
        self._commands, self._databases, self._points = commands, databases, points
        self.start = Path(shutil.copytree(place, folder / "start"))
        self._folder = folder

    def begin(self, *, bare: bool = False) -> None:
        """Give the start a database."""
        self._databases.begin(self.start, bare=bare)

    def store(self, place: Path, experiment: str = "mergeops", model: str = "merged") -> Tracking:
        """What is in a directory's database."""
        uri = self._databases.uri(place)
        return connect(TrackingSpec(uri=uri, experiment=experiment, registered_model=model))

    def run(self, place: Path, *words: str, killed_at: int | None = None, **env: str) -> CommandEnd:
        """A command; ``{uri}`` in its words is that of the directory's database."""
        uri = self._databases.uri(place)
        said = [word.replace("{uri}", uri) for word in words]
        env = {"MLFLOW_TRACKING_URI": uri, **env}
        return self._commands.run(place, *said, killed_at=killed_at, **env)

    def check(self, check: Callable[[Path], Any], *words: str, share: int = 1, **env: str) -> None:
        """Run it twice, then kill it at each point and run it again: each ends alike.

        Args:
            check: of what has to be in a directory then.
            words: the command.
            share: one in so many points is tried, of a command that is long.
            env: its variables.
        """
        whole = self._copy("whole")
        end = self.run(whole, *words, **env)
        assert end.status == 0, end.err
        check(whole)
        again = self.run(whole, *words, **env)
        assert again.status == 0, again.err
        check(whole)
        self._databases.drop(whole)
        points = POINTS or max(self._points // share, 1)
        for k in range(points):
            place = self._copy(str(k))
            step = k * end.steps // points
            killed = self.run(place, *words, killed_at=step, **env)
            # What is kept of a user's caches makes a few steps fewer than the first time.
            assert killed.status == -9 or (killed.status == 0 and killed.steps <= step)
            again = self.run(place, *words, **env)
            assert again.status == 0, f"killed before step {step} of {end.steps}: {again.err}"
            check(place)
            self._databases.drop(place)
            shutil.rmtree(place)

    def _copy(self, name: str) -> Path:
        place = Path(shutil.copytree(self.start, self._folder / name, symlinks=True))
        self._databases.copy(self.start, place)
        return place


@pytest.fixture(scope="module")
def commands() -> Iterator[MortalCommands]:
    running = MortalCommands()
    yield running
    running.close()


@pytest.fixture(scope="module")
def place(tiny_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory without a database."""
    folder = tmp_path_factory.mktemp("place")
    base = tiny_llama(path=folder / "a")
    tiny_llama(path=folder / "b", like=base, seed=1)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def postgres_databases(postgres: Postgres) -> PostgresDatabases:
    return PostgresDatabases(postgres)


@pytest.fixture
def on_sqlite(
    commands: MortalCommands, template_database: Path, place: Path, tmp_path: Path
) -> Sweep:
    return Sweep(commands, SqliteFiles(template_database), place, tmp_path, 9)


@pytest.fixture(params=["on_sqlite", "on_postgresql"])
def sweep(
    request: pytest.FixtureRequest, commands: MortalCommands, place: Path, tmp_path: Path
) -> Sweep:
    if request.param == "on_sqlite":
        here: Sweep = request.getfixturevalue("on_sqlite")
        return here
    databases = request.getfixturevalue("postgres_databases")
    return Sweep(commands, databases, place, tmp_path, 3)


def one_version(sweep: Sweep) -> Callable[[Path], None]:
    """The trial is in MLflow, whole and once."""

    def check(place: Path) -> None:
        tracking = sweep.store(place)
        [version] = tracking.client.search_model_versions("name = 'merged'")
        runs = tracking.search_runs("tags.`mergeops.role` = 'merge'")
        assert [run.info.status for run in runs] == ["FINISHED"]
        assert version.run_id == runs[0].info.run_id
        assert not list(place.glob("mergeops-work/pending/*"))
        assert not list(place.glob("mergeops-work/merges/.*.partial"))

    return check


def test_run_in_a_directory_with_nothing_in_it(sweep: Sweep) -> None:
    sweep.begin(bare=True)
    # Making the database takes most of its time, and most of its steps.
    sweep.check(one_version(sweep), "run", "recipe.yaml", share=2)


def test_run(sweep: Sweep) -> None:
    sweep.begin()
    sweep.check(one_version(sweep), "run", "recipe.yaml")


def test_merge(on_sqlite: Sweep) -> None:
    def merged(place: Path) -> None:
        assert (place / "out" / "mergeops.json").is_file()
        assert not (place / ".out.partial").exists()

    on_sqlite.check(merged, "merge", "recipe.yaml", "out")


def test_sync(sweep: Sweep) -> None:
    sweep.begin()
    end = sweep.run(sweep.start, "run", "recipe.yaml", "tracking.offline=true")
    assert end.status == 0, end.err
    record = next(sweep.start.glob("mergeops-work/pending/*/trial.json"))
    assert record.is_file()

    def logged(place: Path) -> None:
        tracking = sweep.store(place)
        assert len(tracking.client.search_model_versions("name = 'merged'")) == 1
        assert not list(place.glob("mergeops-work/pending/*/trial.json"))

    sweep.check(logged, "sync", "--tracking-uri", "{uri}")


def test_gc(sweep: Sweep) -> None:
    sweep.begin()
    end = sweep.run(sweep.start, "run", "recipe.yaml")
    assert end.status == 0, end.err
    sweep.store(sweep.start).client.delete_registered_model("merged")

    def gone(place: Path) -> None:
        assert not list(place.glob("mergeops-work/merges/*/mergeops.json"))

    sweep.check(gone, "gc", "--yes", "--older-than", "0m")


def test_adopt(sweep: Sweep) -> None:
    sweep.begin()
    tracking = sweep.store(sweep.start, "finetunes")
    for name in "ab":
        run_id = tracking.client.create_run(tracking.experiment_id, run_name=name).info.run_id
        tracking.client.set_tag(run_id, CHECKPOINT_URI, str(sweep.start / name))
        tracking.client.set_terminated(run_id, "FAILED")

    def adopted(place: Path) -> None:
        here = sweep.store(place, "finetunes")
        models = here.client.search_logged_models([here.experiment_id])
        assert sorted(model.tags[CHECKPOINT_URI] for model in models) == [
            str(sweep.start / name) for name in "ab"
        ]
        assert {str(model.status) for model in models} == {"READY"}
        versions = here.client.search_model_versions("name = 'found'")
        assert {version.source for version in versions} == {
            f"models:/{model.model_id}" for model in models
        }
        assert len(versions) == 2
        for run in here.search_runs(""):
            assert run.info.status == "FAILED"
            assert len(run.outputs.model_outputs) == 1

    sweep.check(adopted, "adopt", "--experiment", "finetunes", "--register", "found")


def test_promote(sweep: Sweep) -> None:
    sweep.begin()
    (sweep.start / "held.txt").write_text(TEXT)
    words = ("run", "recipe.yaml", "evaluate.tasks=[held.txt]", "evaluate.device=cpu")
    end = sweep.run(sweep.start, *words)
    assert end.status == 0, end.err
    [version] = sweep.store(sweep.start).client.search_model_versions("")

    def promoted(place: Path) -> None:
        model = sweep.store(place).client.get_registered_model(version.name)
        assert {alias: int(number) for alias, number in model.aliases.items()} == {"champion": 1}
        events = read_history(sweep.store(place), version.name).events
        assert [(event.what, event.version) for event in events] == [
            ("confirm use 1", 1),
            ("promoted", 1),
        ]

    words = ("promote", version.name, "--version", "1", "--force", "--reason", "a test")
    sweep.check(promoted, *words, share=2)


def at(sweep: Sweep, place: Path) -> dict[str, int]:
    model = sweep.store(place, "merges").client.get_registered_model("skills")
    return {alias: int(version) for alias, version in model.aliases.items()}


def test_rollback(championed: Sweep) -> None:
    def back(place: Path) -> None:
        assert at(championed, place) == {"champion": 1, "previous": 2, "challenger": 3}

    championed.check(back, "rollback", "skills", "tracking.experiment=merges")


def test_approve(championed: Sweep) -> None:
    def approved(place: Path) -> None:
        assert at(championed, place) == {"champion": 3, "previous": 2}

    words = ("approve", "skills", "tracking.experiment=merges")
    championed.check(approved, *words, MLFLOW_TRACKING_USERNAME="ben")


def test_reject(championed: Sweep) -> None:
    def rejected(place: Path) -> None:
        assert at(championed, place) == {"champion": 2, "previous": 1}

    words = ("reject", "skills", "tracking.experiment=merges", "--reason", "slow")
    championed.check(rejected, *words)


@pytest.fixture
def championed(sweep: Sweep, checkpoint: Path) -> Sweep:
    """Version 2 is champion, 1 was before, 3 is proposed."""
    sweep.begin()
    tracking = sweep.store(sweep.start, "merges", "skills")
    case = make_case(tracking, checkpoint)
    for version in (1, 2, 3):
        case.whole(plan_digest=str(version) * 64, name=f"merge {version}")
        make_champion(
            tracking, "skills", version, {}, passed=True, user="ann", approval=version > 2
        )
    return sweep
