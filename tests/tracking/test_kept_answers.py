"""A kept answer holds only while neither the store nor its artifacts have changed."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.tracking_case import Case, make_recipe

from mergeops.kernels import user_cache
from mergeops.promotion import Change, History
from mergeops.promotion.history import Event
from mergeops.recipe import Recipe, TrackingSpec
from mergeops.store import Tracking
from mergeops.tracking import Beginning, compare_experiments, kept_answer, kept_answers


@dataclass(frozen=True)
class Number:
    value: float


class Asked:
    """Counts how often MLflow was asked."""

    def __init__(self, answer: Any = None) -> None:
        self.times = 0
        self.answer = answer or Number(1.5)

    def __call__(self) -> Any:
        self.times += 1
        return self.answer


def since(beginning: Recipe) -> Beginning:
    """A command that began some time after its store was written."""
    began = Beginning(beginning)
    object.__setattr__(began, "began_ns", time.time_ns() + 10**9)
    return began


@pytest.fixture
def ask(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Asked]:
    """Asks the same question twice, with ``between`` done in between."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(kept_answers, "Beginning", since)
    place_of(tracking).mkdir(parents=True)
    (place_of(tracking) / "dev.json").write_text("{}")

    def twice(between: Callable[[], object] = lambda: None, **how: Any) -> Asked:
        asked = how.pop("asked", None) or Asked()
        spec = how.pop("spec", tracking.spec)
        recipe = dataclasses.replace(make_recipe(tracking.spec), tracking=spec)
        for step in (lambda: None, between):
            step()
            words, names = how.get("words", ["w"]), how.get("experiments", ["merges"])
            assert kept_answer(type(asked.answer), recipe, words, names, asked) == asked.answer
        return asked

    return twice


def place_of(tracking: Tracking) -> Path:
    location = tracking.client.get_experiment(tracking.experiment_id).artifact_location
    return Path(location.removeprefix("file://"))


def test_the_same_question_is_answered_without_mlflow(ask: Callable[..., Asked]) -> None:
    assert ask().times == 1


def test_a_leaderboard_and_a_history_come_back_as_they_were(
    ask: Callable[..., Asked], case: Case
) -> None:
    case.whole()
    change = Change("skills", "promote", 2, 1, "2026-01-01T00:00:00Z", "ann", hooks=("command",))
    events = (Event(change.at, "promoted", 2, "ann", "was version 1", change.to_dict()),)
    past = History(
        name="skills",
        champion=2,
        previous=1,
        challenger=None,
        waiting=change,
        unfinished=None,
        events=events,
    )
    for answer in (compare_experiments(case.tracking.spec), past):
        assert ask(asked=Asked(answer), words=[type(answer).__name__]).times == 1


def test_whatever_is_written_to_the_store_counts(
    ask: Callable[..., Asked], tracking: Tracking
) -> None:
    def tag() -> None:
        tracking.client.set_experiment_tag(tracking.experiment_id, "a", "b")

    assert ask(tag).times == 2


def test_an_artifact_that_is_gone_counts(ask: Callable[..., Asked], tracking: Tracking) -> None:
    assert ask((place_of(tracking) / "dev.json").unlink).times == 2


def test_an_answer_that_was_damaged_is_asked_again(ask: Callable[..., Asked]) -> None:
    def damage() -> None:
        (file,) = user_cache("answers").iterdir()
        file.write_text(file.read_text()[:-3])

    assert ask(damage).times == 2


def test_other_words_are_another_question(ask: Callable[..., Asked]) -> None:
    asked = ask(words=["dev"])
    assert ask(words=["confirm"], asked=asked).times == 2
    assert ask(words=["dev"], asked=asked).times == 2


def test_a_store_that_was_written_just_now_is_not_trusted(
    ask: Callable[..., Asked], tracking: Tracking
) -> None:
    # Its next change may have the same time.
    file = Path(str(tracking.spec.uri).removeprefix("sqlite:///"))
    soon = time.time_ns() + 5 * 10**9
    os.utime(file, ns=(soon, soon))
    assert ask().times == 2


@pytest.mark.parametrize("registry", ["http://127.0.0.1:9", "sqlite:////elsewhere.db"])
def test_a_registry_elsewhere_is_always_asked(
    ask: Callable[..., Asked], tracking: Tracking, registry: str
) -> None:
    spec = dataclasses.replace(tracking.spec, registry_uri=registry)
    assert ask(spec=spec).times == 2


def test_a_server_is_always_asked(ask: Callable[..., Asked]) -> None:
    assert ask(spec=TrackingSpec(uri="http://127.0.0.1:9")).times == 2


def test_an_experiment_that_is_not_there_is_asked_for(ask: Callable[..., Asked]) -> None:
    assert ask(experiments=["nothing"]).times == 2


def test_a_number_that_is_not_finite_is_not_kept(ask: Callable[..., Asked]) -> None:
    assert ask(asked=Asked(Number(math.inf))).times == 2
