"""kill -9 of server, worker, database and MLflow in a watch's life: it ends as an undisturbed one.

MERGEOPS_KILLS=100 pytest -s tests/service/test_watch_kills.py: a hundred, and what became of them.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from support.liked_task import write_liked
from support.mlflow_server import Server
from support.service_process import ServiceProcess

from mergeops.client import ServiceClient
from mergeops.errors import MergeopsError
from mergeops.progress import Progress
from mergeops.promotion import History, approve, read_history
from mergeops.recipe import compose
from mergeops.store import connect, own_tags
from mergeops.watching import WatchSpec, WatchState, run_round

pytestmark = [pytest.mark.integration, pytest.mark.sweep, pytest.mark.soak]

KILLS = int(os.environ.get("MERGEOPS_KILLS", "8"))
OF_ONE_ROUND = 4
"""A job whose worker dies six times has failed, as it should."""
PATIENCE_S = 1200.0


class Team:
    """Models that are trained one after the other, the task, and the watch's config.

    Args:
        folder: the project.
        runs: how many.
    """

    def __init__(self, folder: Path, runs: int, tiny_llama: Callable[..., Path]) -> None:
        self.folder = folder
        base = tiny_llama(path=folder / "base")
        self.models = [
            tiny_llama(path=folder / f"run{i}", like=base, seed=i + 1, noise=0.05)
            for i in range(runs)
        ]
        write_liked(folder / "tasks", self.models[0], self.models[1])

    def watch(self, uri: str, work: Path) -> dict[str, Any]:
        overrides = [
            f"base={self.folder}/base",
            "method=linear",
            "evaluate.tasks=[liked]",
            f"evaluate.include_path={self.folder}/tasks",
            f"tracking.uri={uri}",
            "tracking.registered_model=skills",
            "tracking.heat_maps=false",
            f"output.dir={work}",
        ]
        return {
            **{"name": "nightly", "experiments": ["finetunes"], "overrides": overrides},
            **{"every_s": 1, "budget": {"search": 2, "confirm_uses": 1000}},
        }

    def ends(self, uri: str, number: int) -> None:
        """The run of that number ends."""
        client = mlflow.MlflowClient(uri)
        found = client.get_experiment_by_name("finetunes")
        experiment = found.experiment_id if found else client.create_experiment("finetunes")
        run = client.create_run(experiment, run_name=f"run{number}")
        client.log_param(run.info.run_id, "output_dir", str(self.models[number]))
        client.log_metric(run.info.run_id, "eval_loss", 1.0)
        client.set_terminated(run.info.run_id)


def undisturbed(team: Team, uri: str) -> tuple[WatchState, History]:
    """The same life without the service, and without a kill."""
    watch = team.watch(uri, team.folder / "undisturbed")
    spec, tracking = WatchSpec.from_dict(watch), connect(compose(watch["overrides"]).tracking)
    state = WatchState()

    def save(now: WatchState) -> None:
        nonlocal state
        state = WatchState.from_dict(json.loads(json.dumps(now.to_dict())))

    for number in range(len(team.models)):
        team.ends(uri, number)
        run_round(spec, state, number + 1, save=save, progress=Progress(quiet=True))
        if number and read_history(tracking, "skills").waiting is not None:
            approve(tracking, "skills", user="ben")
    return state, read_history(tracking, "skills")


class DisturbedLife:
    """The life with its processes, which are killed at random points.

    Args:
        team: whose.
        template: an empty MLflow database.
        kills: how many.
    """

    def __init__(self, team: Team, template: Path, kills: int) -> None:
        self.team, self.kills, self.killed = team, kills, Counter[str]()
        self.mlflow = Server(team.folder / "mlflow", template)
        self.draw = random.Random(kills)
        operator = team.folder / "operator.yaml"
        places = [self.mlflow.uri, str(team.folder), str(team.folder / "tasks")]
        uri, root, tasks = map(json.dumps, places)
        operator.write_text(f"tracking_uris: [{uri}]\nroots: [{root}]\ntask_dirs: [{tasks}]\n")
        environment = {"MLFLOW_TRACKING_URI": self.mlflow.uri, "OMP_NUM_THREADS": "1"}
        self.service = ServiceProcess(team.folder, 1, operator=operator, environment=environment)
        self.client: ServiceClient

    def live(self) -> WatchState:
        """All runs end, each once the one before was tried; what is proposed is approved."""
        self.mlflow.start()
        self.client = self.service.start()
        work = self.team.folder / "mergeops-work"
        self.client.add_watch(self.team.watch(self.mlflow.uri, work))
        for number in range(len(self.team.models)):
            self.team.ends(self.mlflow.uri, number)
            in_this_round = 0
            began = time.monotonic()
            while not self.is_tried(number):
                assert time.monotonic() - began < PATIENCE_S, self.client.jobs()
                if in_this_round < OF_ONE_ROUND and self.killed.total() < self.kills:
                    time.sleep(self.draw.uniform(0.0, 8.0))
                    self.kill(self.draw.choice(("server", "worker", "database", "mlflow")))
                    in_this_round += 1
                else:
                    time.sleep(0.2)
            for proposal in self.client.proposals():
                self.client.approve(proposal["name"], proposal["version"])
            if "PYTEST_XDIST_WORKER" not in os.environ:
                print(f"run{number}: {time.monotonic() - began:.0f} s, {dict(self.killed)}")
        return WatchState.from_dict(self.client.watch_report("nightly")["state"])

    def is_tried(self, number: int) -> bool:
        """Whether the round that tried the run has ended."""
        try:
            state = self.client.watch_report("nightly")["state"]
            jobs = self.client.jobs(states=["queued", "running"])
        except MergeopsError:
            # The database is away.
            return False
        seen = {run["name"]: run["outcome"] for run in state["runs"].values()}
        return seen.get(f"run{number}", "waiting") != "waiting" and not jobs

    def kill(self, victim: str) -> None:
        """kill -9; what nothing else starts again is started again."""
        self.killed[victim] += 1
        if victim == "mlflow":
            self.mlflow.stop()
            time.sleep(self.draw.uniform(0.0, 2.0))
            self.mlflow.start()
        elif victim == "database":
            self.service.kill_database()
        elif victim == "worker":
            self.service.kill_worker(0)
            self.service.start_worker(0)
        else:
            self.service.kill_server()
            self.service.start_server()
            self.client = self.service.client()

    def stop(self) -> None:
        self.service.stop()
        self.mlflow.stop()


def test_a_watchs_life_ends_as_an_undisturbed_one_whatever_is_killed(
    short_folder: Path,
    template_database: Path,
    tiny_llama: Callable[..., Path],
) -> None:
    runs = max(3, -(-KILLS // OF_ONE_ROUND))
    team = Team(short_folder / "life", runs, tiny_llama)
    (short_folder / "calm").mkdir()
    calm_uri = f"sqlite:///{short_folder}/calm/mlflow.db"
    (short_folder / "calm" / "mlflow.db").write_bytes(template_database.read_bytes())
    life = DisturbedLife(team, template_database, KILLS)
    try:
        state = life.live()
        calm, calm_history = undisturbed(team, calm_uri)
        tracking = connect(compose([f"tracking.uri={life.mlflow.uri}"]).tracking)
        jobs = life.client.jobs(limit=1000)
        history = read_history(tracking, "skills")
        trials = tracking.search_runs("tags.`mergeops.role` = 'merge'")
        versions = tracking.client.search_model_versions("name = 'skills'")
        calm_tracking = connect(compose([f"tracking.uri={calm_uri}"]).tracking)
        calm_versions = calm_tracking.client.search_model_versions("name = 'skills'")
    finally:
        life.stop()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"killed: {dict(life.killed)}; attempts: {Counter(j['attempt'] for j in jobs)}")
    # Nothing is lost: each run came to what it comes to undisturbed, and so did the champion.
    assert outcomes(state) == outcomes(calm)
    assert history.champion is not None and history.waiting is None and history.unfinished is None
    assert digest_of(versions, history.champion) == digest_of(calm_versions, calm_history.champion)
    # Nothing is doubled: one round a job, one run and one version a merge, one use a proposal.
    assert [record.number for record in state.rounds] == sorted(
        {record.number for record in state.rounds}
    )
    digests = [own_tags(run.data.tags)["mergeops.plan_digest"] for run in trials]
    assert len(digests) == len(set(digests)) == len(versions)
    assert told(history) == told(calm_history)
    # Nothing is half-done.
    assert {job["state"] for job in jobs} == {"succeeded"}
    assert {run.info.status for run in trials} == {"FINISHED"}
    work = team.folder / "mergeops-work"
    assert not list(work.glob("merges/.*.partial")) and not list(work.glob("pending/*/trial.json"))
    assert all((merge / "mergeops.json").is_file() for merge in work.glob("merges/*/"))


def outcomes(state: WatchState) -> dict[str, tuple[str, float | None]]:
    return {run.name: (run.outcome, run.gain) for run in state.runs.values()}


def digest_of(versions: Any, number: int | None) -> str:
    [found] = [version for version in versions if int(version.version) == number]
    return str(own_tags(found.tags)["mergeops.plan_digest"])


def told(history: History) -> Counter[str]:
    """How often each kind of event is in the audit."""
    return Counter(event.what.split(",")[0] for event in history.events)
