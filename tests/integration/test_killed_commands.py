"""A command that is killed before any step that writes is completed by the same command."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.mortal_commands import CommandEnd, MortalCommands
from support.tracking_case import Case

from mergeops.promotion import read_history
from mergeops.promotion.champion import make_champion
from mergeops.recipe.settings import TrackingSpec
from mergeops.sources import CHECKPOINT_URI
from mergeops.store.connection import connect

pytestmark = [pytest.mark.sweep, pytest.mark.slow]

POINTS = 9
RECIPE = """# @package _global_
sources: {a: {uri: a}, b: {uri: b}}
tracking: {heat_maps: false, register: unscored}
"""
TEXT = "\n\n".join(f"{i:03d} " + "the hare ran. " * 75 for i in range(16))
"""Passages enough for both parts, dev and confirm."""


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


@dataclass
class Sweep:
    """Kills one command at points spread over all its steps."""

    commands: MortalCommands
    start: Path
    folder: Path
    words: tuple[str, ...]
    environment: dict[str, str]

    def run(self, place: Path, killed_at: int | None = None) -> CommandEnd:
        """The command."""
        environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", **self.environment}
        return self.commands.run(place, *self.words, killed_at=killed_at, **environment)

    def place(self, name: str) -> Path:
        """A copy of the start of its own."""
        return Path(shutil.copytree(self.start, self.folder / name, symlinks=True))

    def check(self, check: Callable[[Path], Any], points: int = POINTS) -> None:
        """Run it twice, then kill it at each point and run it again: each ends alike."""
        whole = self.place("whole")
        end = self.run(whole)
        assert end.status == 0, end.err
        check(whole)
        again = self.run(whole)
        assert again.status == 0, again.err
        check(whole)
        for k in range(points):
            place = self.place(str(k))
            step = k * end.steps // points
            assert self.run(place, step).status == -9
            again = self.run(place)
            assert again.status == 0, f"killed before step {step} of {end.steps}: {again.err}"
            check(place)
            shutil.rmtree(place)


@pytest.fixture
def sweep(commands: MortalCommands, tmp_path: Path) -> Callable[..., Sweep]:
    def make(start: Path, *words: str, **environment: str) -> Sweep:
        return Sweep(commands, start, tmp_path, words, environment)

    return make


def store(place: Path, experiment: str = "mergeops") -> Any:
    return connect(TrackingSpec(uri=f"sqlite:///{place}/mlflow.db", experiment=experiment))


def one_version(place: Path) -> None:
    """The trial is in MLflow, whole and once."""
    tracking = store(place)
    [version] = tracking.client.search_model_versions("name = 'merged'")
    runs = tracking.search_runs("tags.`mergeops.role` = 'merge'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert version.run_id == runs[0].info.run_id
    assert not list(place.glob("mergeops-work/pending/*"))
    assert not list(place.glob("mergeops-work/merges/.*.partial"))


def copied(place: Path, to: Path, database: Path | None) -> Path:
    shutil.copytree(place, to)
    if database is not None:
        shutil.copy(database, to / "mlflow.db")
    return to


def test_run_in_a_directory_with_nothing_in_it(sweep: Callable[..., Sweep], place: Path) -> None:
    # Making the database takes most of its time, and most of its steps.
    sweep(place, "run", "recipe.yaml").check(one_version, points=5)


def test_run(
    sweep: Callable[..., Sweep], place: Path, template_database: Path, tmp_path: Path
) -> None:
    start = copied(place, tmp_path / "start", template_database)
    sweep(start, "run", "recipe.yaml").check(one_version)


def test_merge(sweep: Callable[..., Sweep], place: Path) -> None:
    def merged(place: Path) -> None:
        assert (place / "out" / "mergeops.json").is_file()
        assert not (place / ".out.partial").exists()

    sweep(place, "merge", "recipe.yaml", "out").check(merged)


def test_sync(
    sweep: Callable[..., Sweep],
    commands: MortalCommands,
    place: Path,
    template_database: Path,
    tmp_path: Path,
) -> None:
    start = copied(place, tmp_path / "start", template_database)
    end = commands.run(start, "run", "recipe.yaml", "tracking.offline=true")
    assert end.status == 0, end.err
    record = next(start.glob("mergeops-work/pending/*/trial.json"))
    assert record.is_file()

    def logged(place: Path) -> None:
        tracking = store(place)
        assert len(tracking.client.search_model_versions("name = 'merged'")) == 1
        assert not list(place.glob("mergeops-work/pending/*/trial.json"))

    words = ("sync", "--tracking-uri", "sqlite:///mlflow.db")
    sweep(start, *words).check(logged)


def test_gc(
    sweep: Callable[..., Sweep],
    commands: MortalCommands,
    place: Path,
    template_database: Path,
    tmp_path: Path,
) -> None:
    start = copied(place, tmp_path / "start", template_database)
    uri = f"sqlite:///{start}/mlflow.db"
    end = commands.run(start, "run", "recipe.yaml", MLFLOW_TRACKING_URI=uri)
    assert end.status == 0, end.err
    store(start).client.delete_registered_model("merged")

    def gone(place: Path) -> None:
        assert not list(place.glob("mergeops-work/merges/*/mergeops.json"))

    sweep(start, "gc", "--yes", "--older-than", "0m").check(gone)


def test_adopt(
    sweep: Callable[..., Sweep], place: Path, template_database: Path, tmp_path: Path
) -> None:
    start = copied(place, tmp_path / "start", template_database)
    tracking = store(start, "finetunes")
    for name in "ab":
        run_id = tracking.client.create_run(tracking.experiment_id, run_name=name).info.run_id
        tracking.client.set_tag(run_id, CHECKPOINT_URI, str(start / name))
        tracking.client.set_terminated(run_id, "FAILED")

    def adopted(place: Path) -> None:
        here = store(place, "finetunes")
        models = here.client.search_logged_models([here.experiment_id])
        assert sorted(model.tags[CHECKPOINT_URI] for model in models) == [
            str(start / name) for name in "ab"
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

    sweep(start, "adopt", "--experiment", "finetunes", "--register", "found").check(adopted)


def test_promote(
    sweep: Callable[..., Sweep],
    commands: MortalCommands,
    place: Path,
    template_database: Path,
    tmp_path: Path,
) -> None:
    start = copied(place, tmp_path / "start", template_database)
    (start / "held.txt").write_text(TEXT)
    uri = f"sqlite:///{start}/mlflow.db"
    words = ("run", "recipe.yaml", "evaluate.tasks=[held.txt]", "evaluate.device=cpu")
    end = commands.run(start, *words, MLFLOW_TRACKING_URI=uri)
    assert end.status == 0, end.err
    [version] = store(start).client.search_model_versions("")

    def promoted(place: Path) -> None:
        model = store(place).client.get_registered_model(version.name)
        assert {alias: int(number) for alias, number in model.aliases.items()} == {"champion": 1}
        events = read_history(store(place), version.name).events
        assert [(event.what, event.version) for event in events] == [
            ("confirm use 1", 1),
            ("promoted", 1),
        ]

    words = ("promote", version.name, "--version", "1", "--force", "--reason", "a test")
    sweep(start, *words).check(promoted, points=5)


def at(place: Path) -> dict[str, int]:
    model = store(place, "merges").client.get_registered_model("skills")
    return {alias: int(version) for alias, version in model.aliases.items()}


def test_rollback(sweep: Callable[..., Sweep], championed: Path) -> None:
    def back(place: Path) -> None:
        assert at(place) == {"champion": 1, "previous": 2, "challenger": 3}

    sweep(championed, "rollback", "skills", "tracking.experiment=merges").check(back)


def test_approve(sweep: Callable[..., Sweep], championed: Path) -> None:
    def approved(place: Path) -> None:
        assert at(place) == {"champion": 3, "previous": 2}

    words = ("approve", "skills", "tracking.experiment=merges")
    sweep(championed, *words, MLFLOW_TRACKING_USERNAME="ben").check(approved)


def test_reject(sweep: Callable[..., Sweep], championed: Path) -> None:
    def rejected(place: Path) -> None:
        assert at(place) == {"champion": 2, "previous": 1}

    words = ("reject", "skills", "tracking.experiment=merges", "--reason", "slow")
    sweep(championed, *words).check(rejected)


@pytest.fixture
def championed(registered: Case, tmp_path: Path) -> Path:
    """Version 2 is champion, 1 was before, 3 is proposed."""
    for version in (1, 2, 3):
        make_champion(
            registered.tracking,
            "skills",
            version,
            {},
            passed=True,
            user="ann",
            approval=version > 2,
        )
    start = tmp_path / "start"
    start.mkdir()
    shutil.copy(tmp_path / "mlflow.db", start)
    return start
