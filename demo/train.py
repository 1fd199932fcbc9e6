"""Train everything that a team would have before mergeops: a base, fine-tunes in MLflow, tasks.

Each finished part writes a stage file, last; a part without one is done again from the start.

    python -m demo.train --out DIR --model tiny|smollm2 --seed N
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from demo.runs import FineTune, planned
from demo.tasks import write_tasks

if TYPE_CHECKING:
    from demo.finetune import Job

EXPERIMENT = "finetunes"
AT_ONCE = 2
WORKSPACE_TAG = "demo.workspace"
SIGTERM_EXIT = -signal.SIGTERM
EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": SIGTERM_EXIT}


class UnexpectedEndError(RuntimeError):
    """A worker ended in another way than its run is meant to."""


@dataclass(frozen=True)
class Prepared:
    """Where everything is that mergeops starts from."""

    base: Path
    """The base model, a Hugging Face directory."""
    tasks: Path
    """A folder of lm-eval task YAMLs."""
    tracking_uri: str
    experiment: str
    """The MLflow experiment of the fine-tuning runs."""


def prepare(out: Path, model: str, seed: int) -> Prepared:
    """Train base and fine-tunes and write the tasks below ``out``, skipping what is finished.

    Logs to MLFLOW_TRACKING_URI where that is set, else to ``out``/mlflow.db.

    Args:
        out: created where missing.
        model: ``tiny`` or ``smollm2``.
        seed: decides data, initial weights and order of training.
    Raises:
        UnexpectedEndError: when a worker fails that should not, with the path of its log.
    """
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A process that forks must not have used the tokenizer's threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait make training ten times slower beside any other process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    out = out.resolve()
    stages = _Stages(out / "stages")
    stages.require({"model": model, "seed": seed})
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out}/mlflow.db"
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["demo.finetune", "demo.tiny"])
    with _progress() as progress:
        if not stages.done("tasks"):
            stages.finish("tasks", {"names": write_tasks(out / "tasks", seed)})
        base = _make_base(processes, progress, stages, out, model, seed, tracking_uri)
        runs = [run for run in planned(model, seed) if not run.is_late]
        _train_all(processes, progress, stages, out, base, tracking_uri, runs)
    return Prepared(base, out / "tasks", tracking_uri, EXPERIMENT)


def train_late(out: Path, prepared: Prepared, model: str, seed: int) -> None:
    """Train the runs that end while the service watches, skipping what is finished.

    Args:
        out: as of ``prepare``, as are ``model`` and ``seed``.
        prepared: what ``prepare`` gave.
    Raises:
        UnexpectedEndError: as of ``prepare``.
    """
    out = out.resolve()
    processes = multiprocessing.get_context("forkserver")
    stages = _Stages(out / "stages")
    runs = [run for run in planned(model, seed) if run.is_late]
    with _progress() as progress:
        uri = prepared.tracking_uri
        _train_all(processes, progress, stages, out, prepared.base, uri, runs)


class _Stages:
    """Files that say which parts are finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def done(self, name: str) -> bool:
        return (self.folder / f"{name}.json").exists()

    def finish(self, name: str, facts: dict[str, Any]) -> None:
        partial = self.folder / f"{name}.partial"
        partial.write_text(json.dumps(facts, indent=1))
        partial.replace(self.folder / f"{name}.json")

    def require(self, choice: dict[str, Any]) -> None:
        """Refuse to mix two models or seeds in one directory."""
        path = self.folder / "choice.json"
        if not path.exists():
            self.finish("choice", choice)
        found = json.loads(path.read_text())
        if found != choice:
            raise click.UsageError(
                f"{self.folder.parent} was made with {found}, not {choice}; choose another --out"
            )


def _progress() -> Progress:
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))


def _make_base(
    processes: ForkServerContext,
    progress: Progress,
    stages: _Stages,
    out: Path,
    model: str,
    seed: int,
    tracking_uri: str,
) -> Path:
    """Make the base in a worker process while this one sets up the tracking database."""
    if model == "smollm2":
        from demo.smollm2 import cached_base

        _open_experiment(tracking_uri, out)
        return cached_base(progress)
    folder = out / "base"
    if stages.done("base"):
        return folder
    from demo.tiny import STEPS, train_base

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    bar = progress.add_task("base model", total=STEPS)
    receiver, sender = processes.Pipe(duplex=False)
    worker = processes.Process(target=train_base, args=(folder, seed, os.cpu_count(), sender))
    worker.start()
    sender.close()
    _open_experiment(tracking_uri, out)
    for step in _messages(receiver):
        progress.update(bar, completed=step)
    worker.join()
    if worker.exitcode != 0:
        raise UnexpectedEndError(f"training the base ended with exit code {worker.exitcode}")
    stages.finish("base", {"path": str(folder), "seed": seed})
    return folder


def _messages(receiver: Connection) -> Any:
    while True:
        try:
            yield receiver.recv()
        except EOFError:
            return


def _open_experiment(tracking_uri: str, out: Path) -> None:
    """Create the experiment; with a local database its artifacts go below ``out`` too."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    client = mlflow.MlflowClient(tracking_uri)
    if client.get_experiment_by_name(EXPERIMENT) is None:
        local = tracking_uri.startswith("sqlite:")
        artifacts = (out / "mlartifacts" / EXPERIMENT).as_uri() if local else None
        client.create_experiment(EXPERIMENT, artifact_location=artifacts)


class _Running:
    """One worker and what it has told so far."""

    def __init__(self, processes: ForkServerContext, job: Job) -> None:
        from demo.finetune import work

        self.job = job
        self.run_id = ""
        self.step = 0
        self.receiver, sender = processes.Pipe(duplex=False)
        self.process: BaseProcess = processes.Process(target=work, args=(job, sender))
        self.process.start()
        sender.close()

    def listen(self) -> bool:
        """Take one message; False when the worker has ended."""
        try:
            kind, value = self.receiver.recv()
        except EOFError:
            return False
        if kind == "run":
            self.run_id = value
        else:
            self.step = value
        return True

    def preempt(self) -> None:
        """What a scheduler does when somebody more important comes along."""
        if self.job.run.status == "KILLED" and self.step == self.job.run.steps // 2:
            assert self.process.pid is not None
            os.kill(self.process.pid, signal.SIGTERM)


def _train_all(
    processes: ForkServerContext,
    progress: Progress,
    stages: _Stages,
    out: Path,
    base: Path,
    tracking_uri: str,
    runs: list[FineTune],
) -> None:
    """Train those of ``runs`` that are not finished, ``AT_ONCE`` at a time, each in its own
    process."""
    waiting = [run for run in runs if not stages.done(run.name)]
    bars = {run.name: progress.add_task(run.name, total=run.steps) for run in waiting}
    running: dict[Connection, _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                job = _job(waiting.pop(0), out, base, tracking_uri)
                worker = _Running(processes, job)
                running[worker.receiver] = worker
            for receiver in wait(list(running)):
                worker = running[receiver]  # type: ignore[index]
                if worker.listen():
                    progress.update(bars[worker.job.run.name], completed=worker.step)
                    worker.preempt()
                    continue
                del running[receiver]  # type: ignore[arg-type]
                status = _settle(worker, stages)
                name = worker.job.run.name
                progress.update(bars[name], description=f"{name} [{status}]".replace("[", r"\["))
    finally:
        for worker in running.values():
            worker.process.kill()


def _job(run: FineTune, out: Path, base: Path, tracking_uri: str) -> Job:
    """The job for a run, after removing what an interrupted attempt left."""
    import mlflow

    from demo.finetune import Job

    output, log = out / "runs" / run.name, out / "logs" / f"{run.name}.log"
    shutil.rmtree(output, ignore_errors=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    client = mlflow.MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    earlier = client.search_runs(
        [experiment.experiment_id],
        f"tags.`{WORKSPACE_TAG}` = '{out}' and attributes.run_name = '{run.name}'",
    )
    for stale in earlier:
        client.delete_run(stale.info.run_id)
    tags = {WORKSPACE_TAG: str(out), "skills": ", ".join(sorted(run.shares))}
    return Job(run, base, output, EXPERIMENT, tracking_uri, tags, log)


def _settle(worker: _Running, stages: _Stages) -> str:
    """Check that the worker ended as its run is meant to, and say so in a stage file."""
    import mlflow

    run = worker.job.run
    worker.process.join()
    expected, code = EXIT_CODES[run.status], worker.process.exitcode
    if code != expected:
        raise UnexpectedEndError(
            f"fine-tune {run.name} ended with exit code {code}, not {expected}; "
            f"see {worker.job.log}"
        )
    status = mlflow.MlflowClient(worker.job.tracking_uri).get_run(worker.run_id).info.status
    checkpoints = sorted(path.name for path in worker.job.output.glob("checkpoint-*"))
    if status != run.status or not checkpoints:
        raise UnexpectedEndError(
            f"fine-tune {run.name} is {status} in MLflow, not {run.status}, "
            f"and left {checkpoints or 'no checkpoint'}; see {worker.job.log}"
        )
    stages.finish(run.name, {"run_id": worker.run_id, "checkpoints": checkpoints})
    return status


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--model", type=click.Choice(["tiny", "smollm2"]), default="tiny")
@click.option("--seed", type=int, default=0)
def main(out: Path, model: str, seed: int) -> None:
    """Train base and fine-tunes and write the tasks below OUT; run again, it goes on."""
    prepared = prepare(out, model, seed)
    click.echo(f"MLFLOW_TRACKING_URI={prepared.tracking_uri}")
    click.echo(f"experiment={prepared.experiment} base={prepared.base} tasks={prepared.tasks}")


if __name__ == "__main__":
    main()
