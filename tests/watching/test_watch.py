"""A watch on real runs and models: what is better is proposed once, all else is told why not."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from support.liked_task import write_liked

from mergeops.progress import Progress
from mergeops.promotion import approve, read_history
from mergeops.recipe import compose
from mergeops.store import connect
from mergeops.watching import Round, WatchSpec, WatchState, has_work, run_round

pytestmark = [pytest.mark.integration, pytest.mark.slow]


class Team:
    """An experiment, its models, a watch, and what the watch knows."""

    def __init__(self, folder: Path, tiny_llama: Callable[..., Path]) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client = mlflow.MlflowClient(self.uri)
        self.experiment = self.client.create_experiment("finetunes")
        self.base = tiny_llama(path=folder / "base")
        self.models = {
            name: tiny_llama(path=folder / name, like=self.base, seed=seed, noise=0.05)
            for seed, name in enumerate(("math", "dates", "noise"), 1)
        }
        overrides = [
            f"base={self.base}",
            "method=linear",
            "evaluate.tasks=[liked]",
            f"evaluate.include_path={folder}/tasks",
            f"tracking.uri={self.uri}",
            "tracking.registered_model=skills",
            "tracking.heat_maps=false",
            f"output.dir={folder}/work",
        ]
        raw = {
            **{"name": "nightly", "experiments": ["finetunes"], "overrides": overrides},
            "budget": {"search": 3},
        }
        self.spec = WatchSpec.from_dict(raw)
        self.state = WatchState()
        self.tracking = connect(compose(overrides).tracking)
        self.number = 0

    def ends(self, name: str, directory: Path | None, status: str = "FINISHED", loss: float = 1.0):
        run = self.client.create_run(self.experiment, run_name=name)
        if directory is not None:
            self.client.log_param(run.info.run_id, "output_dir", str(directory))
        self.client.log_metric(run.info.run_id, "eval_loss", loss)
        self.client.set_terminated(run.info.run_id, status)

    def round(self, *, again: bool = False) -> Round:
        self.number += not again

        def save(state: WatchState) -> None:
            # As the database keeps it.
            self.state = WatchState.from_dict(json.loads(json.dumps(state.to_dict())))

        quiet = Progress(quiet=True)
        return run_round(self.spec, self.state, self.number, save=save, progress=quiet)

    def outcomes(self) -> dict[str, str]:
        return {run.name: run.outcome for run in self.state.runs.values()}


@pytest.fixture
def team(tiny_llama: Callable[..., Path], template_database: Path, tmp_path: Path) -> Team:
    (tmp_path / "mlflow.db").write_bytes(template_database.read_bytes())
    team = Team(tmp_path, tiny_llama)
    write_liked(tmp_path / "tasks", team.models["math"], team.models["dates"])
    return team


def test_a_watchs_life(team: Team) -> None:
    # One run alone is no merge.
    team.ends("math", team.models["math"])
    first = team.round()
    assert (first.new, first.usable, first.trials, first.proposed) == (1, 1, 0, "")
    assert team.outcomes() == {"math": "kept"}

    # The second makes the merge that the task likes; a run that failed counts as any other.
    team.ends("dates", team.models["dates"], status="FAILED")
    second = team.round()
    assert second.proposed == "skills/1", second.note
    assert team.outcomes()["dates"] == "kept"
    history = read_history(team.tracking, "skills")
    assert history.waiting is not None
    assert (history.waiting.to, history.waiting.by) == (1, "watch nightly")
    assert history.champion is None

    # The same round again does nothing; neither does one in which nothing is new.
    assert team.round(again=True).note.endswith("(done before)")
    assert not has_work(team.spec, team.state)
    assert team.round().note == "nothing new"
    uses = [event for event in history.events if event.what.startswith("confirm use")]
    assert len(uses) == 1

    approve(team.tracking, "skills", user="ben")

    # What is useless is told apart, and nothing of it is proposed.
    twin = shutil.copytree(team.models["math"], team.folder / "twin")
    other = shutil.copytree(team.models["noise"], team.folder / "diverged")
    team.ends("twin", twin)
    team.ends("nothing", None, status="KILLED")
    team.ends("diverged", other, loss=math.nan)
    team.ends("noise", team.models["noise"])
    assert has_work(team.spec, team.state)
    fourth = team.round()
    assert (fourth.new, fourth.proposed) == (4, "")
    outcomes = team.outcomes()
    assert (outcomes["twin"], outcomes["nothing"]) == ("duplicate", "unusable")
    assert outcomes["diverged"] == "unusable"
    assert outcomes["noise"] == "not better"
    history = read_history(team.tracking, "skills")
    assert (history.champion, history.waiting) == (1, None)
    uses = [event for event in history.events if event.what.startswith("confirm use")]
    assert len(uses) == 1
    gains = {run.name: run.gain for run in team.state.runs.values()}
    assert gains["noise"] is not None and gains["noise"] < 0
