"""A study in a user's directory, run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergeops.progress import Progress
from mergeops.recipe import compose
from mergeops.search import parameter_types, run_search, with_strategy


@pytest.fixture
def study(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run a study in the user's directory, in this process; what ``--json`` prints."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")

    def run(*words: str) -> dict[str, Any]:
        named = [] if any(word.startswith("strategy=") for word in words) else ["strategy=optuna"]
        overrides = with_strategy(["recipe=three", *named, *words])
        recipe = compose(overrides, config_dir=Path("conf"), strategies=parameter_types())
        found: dict[str, Any] = json.loads(
            json.dumps(run_search(recipe, Progress(quiet=True)).to_dict())
        )
        return found

    return run
