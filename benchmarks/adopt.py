"""How long listing very many training runs takes: ``python -m benchmarks.adopt``.

One run is logged as the HF Trainer logs it (150 params, 60 metrics), and then copied inside the
database of MLflow; each copy has an output directory of its own with a small checkpoint.
`mergeops adopt --dry-run` then lists them, from the database and through an MLflow server.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import time
import uuid
from pathlib import Path

import click
import torch
from safetensors.torch import save_file

from benchmarks.measure import measure
from tests.support.mlflow_server import Server

EXPERIMENT = "finetunes"
PARAMS, METRICS, POINTS = 150, 60, 20
COPIED = ("runs", "params", "tags", "metrics", "latest_metrics")
"""MLflow's tables with a column run_uuid that a run needs."""


@click.command()
@click.option("--runs", default=10_000, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("/tmp/mergeops-bench-adopt"),
    show_default=True,
    help="For the database and the checkpoints; made anew.",
)
def bench(runs: int, folder: Path) -> None:
    """List many runs, and say how long it took."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    database = folder / "mlflow.db"
    click.echo(f"making {runs} runs in {folder}", err=True)
    copy_run(database, log_run(database, folder), runs, folder)
    click.echo("| store | runs listed | s | processor s |\n|---|---|---|---|")
    store = f"sqlite:///{database}"
    list_runs(store, "sqlite", folder)
    server = Server(folder / "server", store=store)
    server.start()
    try:
        list_runs(server.uri, "mlflow server over sqlite", folder)
    finally:
        server.stop()


def log_run(database: Path, folder: Path) -> str:
    """Log one run as a trainer does; gives its id."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
    import mlflow
    from mlflow.entities import Metric, Param

    client = mlflow.MlflowClient()
    experiment = client.create_experiment(EXPERIMENT, artifact_location=str(folder / "artifacts"))
    run_id = str(client.create_run(experiment, run_name="run").info.run_id)
    params = {f"training_argument_{i}": f"value {i}" for i in range(PARAMS - 2)}
    params |= {"output_dir": str(folder / "outputs" / "0"), "_name_or_path": "org/base-model"}
    names = ["loss", "eval_loss", *(f"eval_measure_{i}" for i in range(METRICS - 2))]
    now = int(time.time() * 1000)
    client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()][:100])
    client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()][100:])
    for step in range(POINTS):
        client.log_batch(run_id, [Metric(name, 1.0 / (step + 1), now, step) for name in names])
    client.set_terminated(run_id)
    return run_id


def copy_run(database: Path, run_id: str, runs: int, folder: Path) -> None:
    """Copies of a run, ``runs`` with itself, and a checkpoint for each."""
    shape = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8}
    first = folder / "outputs" / "0" / "checkpoint-20"
    first.mkdir(parents=True)
    save_file({"model.norm.weight": torch.ones(8)}, first / "model.safetensors")
    (first / "config.json").write_text(json.dumps(shape))
    state = {"global_step": 20, "log_history": [{"step": 20, "eval_loss": 0.05}]}
    (first / "trainer_state.json").write_text(json.dumps(state))
    with sqlite3.connect(database) as opened:
        for table in COPIED:
            columns = [row[1] for row in opened.execute(f"PRAGMA table_info({table})")]
            rows = opened.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", [run_id]).fetchall()
            places = ", ".join("?" * len(columns))
            for i in range(1, runs):
                new = uuid.UUID(int=i).hex
                copies = [
                    _renamed(dict(zip(columns, row, strict=True)), run_id, new, i) for row in rows
                ]
                opened.executemany(
                    f"INSERT INTO {table} VALUES ({places})", [list(c.values()) for c in copies]
                )
    for i in range(1, runs):
        shutil.copytree(first, folder / "outputs" / str(i) / first.name, copy_function=os.link)


def _renamed(row: dict[str, object], run_id: str, new: str, number: int) -> dict[str, object]:
    named = {**row, "run_uuid": new}
    if "artifact_uri" in row:
        named["artifact_uri"] = str(row["artifact_uri"]).replace(run_id, new)
        named["name"] = f"run {number}"
    if row.get("key") == "output_dir":
        named["value"] = str(Path(str(row["value"])).with_name(str(number)))
    return named


def list_runs(uri: str, store: str, folder: Path) -> None:
    """Print one row: the whole command, from its start to its end."""
    command = [sys.executable, "-m", "mergeops", "adopt", "--experiment", EXPERIMENT]
    command += ["--dry-run", "--json", "--quiet"]
    output = folder / "output.json"
    wall, cpu, _ = measure(command, {**os.environ, "MLFLOW_TRACKING_URI": uri}, folder, output)
    rows = json.loads(output.read_text())
    usable = sum(row["problem"] is None for row in rows)
    click.echo(f"| {store} | {len(rows)}, {usable} usable | {wall:.1f} | {cpu:.1f} |")


if __name__ == "__main__":
    bench()
