"""What a search says before it begins, and what it has taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from mergeops.engine import MERGING, SCORING, note_pace
from mergeops.progress import Progress
from mergeops.recipe import Recipe
from mergeops.search import Forecast, forecast_search, run_search
from mergeops.search.beforehand import cost
from mergeops.workshop import Spent

QUIET = Progress(quiet=True)


@pytest.fixture
def recipe(
    tiny_llama: Callable[..., Path], new_store: str, tmp_path: Path
) -> Callable[..., Recipe]:
    """A recipe of a base and two sources, and a text of 16 passages to score on."""
    base = tiny_llama()
    sources = {name: {"uri": str(tiny_llama(like=base, seed=i))} for i, name in enumerate("ab", 1)}
    held = tmp_path / "held.txt"
    held.write_text("\n\n".join(f"{i:03d} " + "the hare ran. " * 75 for i in range(16)))
    raw = {
        "method": "task_arithmetic",
        "base": str(base),
        "sources": sources,
        "output": {"dir": str(tmp_path / "work")},
        "evaluate": {"tasks": [str(held)], "device": "cpu"},
        "tracking": {"uri": new_store, "heat_maps": False},
    }

    def make(**changes: Any) -> Recipe:
        return Recipe.from_dict(raw | changes)

    return make


def test_a_search_says_how_much_it_takes_at_most(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    grid = {"strategy": "grid", "grid": {"method.scale": [0.2, 0.5, 1.0]}}
    said = forecast_search(recipe(search=grid), QUIET)
    assert said is not None
    assert (said.merges, said.parents, said.devices) == (3, 3, ("cpu",))
    # Of 16 passages about half are dev, and 3 merges, 2 sources and the base answer each.
    assert said.answers % 6 == 0 and 0 < said.answers < 6 * 16
    [weights] = Path(recipe().base or "").glob("*.safetensors")
    assert said.written == 3 * weights.stat().st_size
    assert said.seconds is None and "it is not known how long" in str(said)
    client = mlflow.MlflowClient(recipe().tracking.uri)
    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]

    note_pace(tmp_path / "work", MERGING, said.written, 2.0)
    note_pace(tmp_path / "work", SCORING, said.answers * weights.stat().st_size, 60.0)
    again = forecast_search(recipe(search=grid), QUIET)
    assert again is not None and again.seconds == pytest.approx(62.0)
    assert "about 0:01:02, by its pace before" in str(again)


def test_a_search_says_afterwards_what_it_took(
    recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    run_search(recipe(), Progress("lines"))
    said = capsys.readouterr().err
    # The greedy soup of two sources is one merge; it and three parents are asked.
    assert "· at most 1 merge, " in said
    assert "· it took 1 merge, " in said and " answers of 4 models in 0:00:" in said
    run_search(recipe(), Progress("lines"))
    said = capsys.readouterr().err
    assert "· it took nothing: all of it was done before" in said
    assert "by its pace before" in said


def test_numbers_are_shown_in_their_units() -> None:
    spent = Spent(2, 3_000_000_000, 65.2, 4, 1200, 3700.0)
    text = "it took 2 merges, 3.0 GB, in 0:01:05, and 1200 answers of 4 models in 1:01:40"
    assert cost(spent) == text
    known = Forecast(2, 3, 500, 4_000_000, 90.0, ("cuda:0", "cuda:1"))
    assert str(known) == (
        "at most 2 merges, 4.0 MB, and 500 answers of 5 models on cuda:0, cuda:1: about 0:01:30, "
        "by its pace before"
    )
    assert known.to_dict()["devices"] == ["cuda:0", "cuda:1"]
