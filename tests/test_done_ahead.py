"""Workers make and score the merges of several trials; the driver finds them done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from support.spread_trials import SpreadTrials

from mergeops.executors import UnitError
from mergeops.pipeline import run_all
from mergeops.progress import Progress
from mergeops.recipe import ExecutorSpec, TrackingSpec
from mergeops.tools import Tools

LOCAL = ExecutorSpec(name="local", workers=1, threads=1)


@pytest.fixture
def trials(tiny_llama: Callable[..., Path], spec: TrackingSpec, tmp_path: Path) -> SpreadTrials:
    return SpreadTrials(tiny_llama, spec.uri, tmp_path)


def artifacts(spec: TrackingSpec, place: str) -> dict[str, str]:
    """Those of the sweep's run, by path; workers and failures only."""
    client = mlflow.MlflowClient(spec.uri)
    [run] = client.search_runs(
        [client.get_experiment_by_name(place).experiment_id], "tags.`mergeops.role` = 'search'"
    )
    found = {}
    for folder in (None, "failed"):
        for file in client.list_artifacts(run.info.run_id, folder):
            if file.path == "workers.json" or file.path.startswith("failed/"):
                local = client.download_artifacts(run.info.run_id, file.path)
                found[file.path] = Path(local).read_text(encoding="utf-8")
    return found


@pytest.mark.sweep
def test_a_sweep_by_a_worker_that_dies_is_the_same_as_here(
    trials: SpreadTrials, spec: TrackingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Tools] = []
    monkeypatch.setattr(
        "mergeops.pipeline.Tools", lambda *words: made.append(Tools(*words)) or made[-1]
    )
    killing = trials.killing()
    assert trials.swept("there", LOCAL, killing) == trials.swept("here", ExecutorSpec())
    there, here = (tools.spent for tools in made)
    assert (there.merges, there.models) == (0, 0) and (here.merges, here.models) == (2, 5)
    assert len(killing.lost) == 1
    # Who did what, and when, is on the sweep's page.
    spans = json.loads(artifacts(spec, "there")["workers.json"])
    assert len(spans) == 5 and all(span["seconds"] > 0 for span in spans)
    assert sum(span["unit"].startswith("merging ") for span in spans) == 2


def test_what_a_unit_said_before_it_failed_is_on_the_sweeps_page(
    trials: SpreadTrials, spec: TrackingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mergeops.tools.MERGE_AND_SCORE", "mergeops.testing.executor_units:break_down"
    )
    recipes = [trials.recipe("broken", LOCAL, method=name) for name in ("linear", "karcher")]
    with pytest.raises(UnitError, match="why"):
        run_all(recipes, Progress(quiet=True), name="a sweep")
    [log] = (text for path, text in artifacts(spec, "broken").items() if path.startswith("failed/"))
    assert "KeyError: 'why'" in log and "break_down" in log


@pytest.mark.sweep
def test_a_search_by_workers_is_the_same_as_here(trials: SpreadTrials) -> None:
    two = ExecutorSpec(name="local", workers=2, threads=1)
    killing = trials.killing()
    assert trials.searched("there", two, killing) == trials.searched("here", ExecutorSpec())
    assert len(killing.lost) == 1
