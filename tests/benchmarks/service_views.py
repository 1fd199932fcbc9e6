"""Figures of the service in docs/service.md that need a large MLflow: a leaderboard of 1,000 trials
as the page shows it, and a watch's look at 10,000 runs of which 3 are new.

PYTHONPATH=tests python tests/benchmarks/service_views.py --trials 1000 --items 200 --runs 10000
"""

from __future__ import annotations

import tempfile
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import click
import mlflow
import numpy as np
import psutil
from mlflow.entities import RunTag
from promotion_simulation import scores
from support.mlflow_server import Server
from support.service_process import ServiceProcess

from mergeops.recipe import TrackingSpec
from mergeops.store import connect
from mergeops.tracking.score_log import _log_items
from mergeops.watching import newly_ended


@click.command()
@click.option("--trials", default=1000)
@click.option("--items", default=200, help="Of the dev part.")
@click.option("--runs", default=10_000)
def views(trials: int, items: int, runs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="mf-") as name:
        folder = Path(name)
        (folder / "mlflow").mkdir()
        store = f"sqlite:///{folder}/mlflow/mlflow.db"
        server = Server(folder / "mlflow")
        if trials:
            fill_trials(store, folder / "mlflow" / "artifacts", trials, items)
        if runs:
            fill_runs(store, runs)
        server.start()
        try:
            if trials:
                view(folder / "project", server.uri, trials)
            if runs:
                poll(server.uri, runs)
        finally:
            server.stop()


def view(folder: Path, uri: str, trials: int) -> None:
    """The leaderboard's first view, and the one that has it."""
    service = ServiceProcess(folder, 0, environment={"MLFLOW_TRACKING_URI": uri})
    try:
        client = service.start()
        memory = psutil.Process(service.server_pid).memory_info
        before = memory().rss
        took, page = asked(client, "/leaderboard")
        click.echo(f"first view of a leaderboard of {trials} trials: {1000 * took:.0f} ms")
        began = time.monotonic()
        while page.count("<tr>") < trials:
            assert time.monotonic() - began < 600, page
            time.sleep(1)
            _, page = asked(client, "/leaderboard")
        click.echo(f"all of it is shown after {time.monotonic() - began:.0f} s")
        views = sorted(asked(client, "/leaderboard")[0] for _ in range(20))
        click.echo(f"a view: median {1000 * views[10]:.0f} ms, longest {1000 * views[-1]:.0f} ms")
        click.echo(
            f"memory of serve: {before / 1e6:.0f} MB before, {memory().rss / 1e6:.0f} MB now"
        )
    finally:
        service.stop()


def asked(client: Any, path: str) -> tuple[float, str]:
    """Seconds until the page was there, and the page."""
    address = client._address
    request = urllib.request.Request(
        address.url + path, headers={"Authorization": f"Bearer {address.token}"}
    )
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        page = answer.read().decode()
    return time.perf_counter() - began, page


def poll(uri: str, runs: int) -> None:
    """A watch that has seen all of an experiment's runs looks again: 3 more have ended."""
    tracking = connect(TrackingSpec(uri=uri, experiment="finetunes"))
    began = time.perf_counter()
    found, cursor = newly_ended(tracking, "finetunes", 0, {})
    first = time.perf_counter() - began
    seen = {run.run_id: run for run in found}
    assert len(seen) == runs
    client = mlflow.MlflowClient(uri)
    for _ in range(3):
        client.set_terminated(client.create_run(tracking.experiment_id).info.run_id)
    began = time.perf_counter()
    new, _ = newly_ended(tracking, "finetunes", cursor, seen)
    click.echo(
        f"looking at {runs} runs: {first:.1f} s the first time; of 3 new ones, "
        f"{time.perf_counter() - began:.2f} s, {len(new)} found"
    )


def fill_trials(store: str, artifacts: Path, trials: int, items: int) -> None:
    """Merges with the scores that ``mergeops run`` logs, as far as a leaderboard reads them."""
    generator = np.random.default_rng(0)
    client = mlflow.MlflowClient(store)
    experiment = client.create_experiment("mergeops", f"mlflow-artifacts:/{uuid.uuid4().hex}")
    place = client.get_experiment(experiment).artifact_location.removeprefix("mlflow-artifacts:/")
    for number in range(trials):
        own = scores(generator.random(items) < generator.uniform(0.4, 0.7), "dev", f"{number:064x}")
        run_id = client.create_run(experiment, run_name=f"trial {number}").info.run_id
        role = "merge" if number else "source"
        facts = {"mergeops.role": role, "mergeops.scores_sha256.dev": "x"}
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in facts.items()])
        _log_items(_Writer(artifacts / place), run_id, own)  # type: ignore[arg-type]
        client.set_terminated(run_id)


class _Writer:
    """Puts artifacts where the server will find them, without asking it a thousand times."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.client = self

    def log_artifacts(self, run_id: str, folder: str) -> None:
        for file in Path(folder).rglob("*.*"):
            to = self._folder / run_id / "artifacts" / file.relative_to(folder)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(file.read_bytes())


def fill_runs(store: str, runs: int) -> None:
    """Training runs that ended, written as rows: by the client they take minutes."""
    from mlflow.store.tracking.dbmodels.models import SqlRun
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    client = mlflow.MlflowClient(store)
    experiment = client.create_experiment("finetunes")
    now = int(time.time() * 1000)
    with Session(create_engine(store)) as session:
        session.add_all(
            SqlRun(
                run_uuid=uuid.uuid4().hex,
                name=f"run {number}",
                experiment_id=int(experiment),
                status="FINISHED",
                # One has ended each minute, for a week.
                start_time=now - 60_000 * (number + 120),
                end_time=now - 60_000 * (number + 60),
                lifecycle_stage="active",
                artifact_uri=f"mlflow-artifacts:/{experiment}/{number}",
                source_type="LOCAL",
                user_id="ann",
            )
            for number in range(runs)
        )
        session.commit()


if __name__ == "__main__":
    views()
