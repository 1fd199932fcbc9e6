"""A study in a user's directory, run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.user_place import furnish

from mergeops.progress import Progress
from mergeops.recipe import compose
from mergeops.search import parameter_types, run_search, with_strategy
from mergeops.tracking.logged_run import LoggedRun


@pytest.fixture
def place(tiny_llama: Callable[..., Path], template_database: Path, tmp_path: Path) -> Path:
    """A user's directory with models that are asked in no time."""
    return furnish(tmp_path, tiny_llama, template_database, layers=2, hidden=64)


@pytest.fixture
def study(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run a study in the user's directory, in this process; what ``--json`` prints.

    Pictures are drawn only where they are asked for: they take as long as the answers.
    """
    monkeypatch.chdir(place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    draw = LoggedRun.log_figure

    def run(*words: str, pictures: bool = False) -> dict[str, Any]:
        monkeypatch.setattr(LoggedRun, "log_figure", draw if pictures else lambda *_: None)
        named = [] if any(word.startswith("strategy=") for word in words) else ["strategy=optuna"]
        overrides = with_strategy(["recipe=three", *named, *words])
        recipe = compose(overrides, config_dir=Path("conf"), strategies=parameter_types())
        found: dict[str, Any] = json.loads(
            json.dumps(run_search(recipe, Progress(quiet=True)).to_dict())
        )
        return found

    return run
