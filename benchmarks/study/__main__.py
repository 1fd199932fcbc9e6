"""The command line of the study."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import click

from benchmarks.study import cases, questions, training
from benchmarks.study.judge import Case, Judge, Place, judge_cases
from benchmarks.study.plan import RUNS
from benchmarks.study.report import write_report
from benchmarks.study.results import Result, ResultsFile
from demo.skills import Item

FOLDER = click.argument("folder", type=click.Path(path_type=Path))
PROMPTS = 32
"""Texts that a method which reads prompts is given of each skill."""


@click.group()
def main() -> None:
    """What every merge method does on real fine-tunes of a real model."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Processes that begin here keep memory for the next step: asked of the system again for each,
    # its pages cost a third of the time.
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        os.environ.setdefault(name, str(2**32))


@main.command()
@FOLDER
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    required=True,
    help="A folder with train.jsonl and test.jsonl or dev.jsonl; give one for each data set.",
)
@click.option("--steps", default=240, show_default=True, help="Of a run that goes to its end.")
@click.option("--batch", default=8, show_default=True, help="Questions of one step.")
@click.option("--items", default=600, show_default=True, help="Questions of each task.")
@click.option("--trials", default=24, show_default=True, help="Of each search.")
@click.option(
    "--search", "searched", multiple=True, help="A method that is searched; none: all quick ones."
)
@click.option(
    "--only", type=click.Choice(cases.KINDS), multiple=True, help="Kinds to judge; none: all."
)
@click.option(
    "--transfer/--no-transfer",
    default=True,
    show_default=True,
    help="Ask merges the task that no run is trained on, too.",
)
@click.option("--at-once", default=2, show_default=True, help="Processes, of one thread each.")
def run(
    folder: Path,
    data: tuple[Path, ...],
    steps: int,
    batch: int,
    items: int,
    trials: int,
    searched: tuple[str, ...],
    only: tuple[str, ...],
    transfer: bool,
    at_once: int,
) -> None:
    """Train, merge and judge below FOLDER. Killed anywhere, the same command goes on."""
    from rich.progress import Progress

    from demo.smollm2 import cached_base

    sizes = {"steps": steps, "batch": batch, "items": items}
    _require(folder / "sizes.json", sizes)
    with Progress() as bars:
        base = cached_base(bars)
    taught = questions.read_items(data, "train")
    runs = folder / "runs"
    for facts in training.train_all(runs, base, taught, steps=steps, batch=batch, at_once=at_once):
        click.echo(f"{facts['run']}: {facts['steps']} steps, {facts['cpu_s']} processor seconds")
    questions.write_tasks(folder / "tasks", questions.read_items(data, "test"), items)
    results = ResultsFile(folder / "results.jsonl")
    place = Place(folder.resolve(), base, folder.resolve() / "tasks", transfer)
    _judge_all(place, results, cases.parents(runs, base), at_once)
    kinds = only or cases.KINDS
    if not any(result.kind == "inspect" for result in results):
        everything = {run.name: training.last_checkpoint(runs, run) for run in RUNS}
        results.add(Judge(place).inspected(everything))
    prompts = _write_prompts(folder / "prompts", taught)
    methods = searched or cases.searchable()
    for planned in (
        cases.merges(runs, list(results), prompts),
        cases.searches(runs, list(results), methods, trials),
        cases.of_all_runs(runs),
    ):
        _judge_all(place, results, (case for case in planned if case.kind in kinds), at_once)


@main.command()
@FOLDER
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where they are written; FOLDER by itself.",
)
def report(folder: Path, out: Path | None) -> None:
    """Write study.md and study.png of what is in FOLDER's results file so far."""
    sizes = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
    write_report(ResultsFile(folder / "results.jsonl"), sizes, out or folder)


def _judge_all(place: Place, results: ResultsFile, planned: Iterable[Case], at_once: int) -> None:
    """Those that have no line yet; each process merges and scores one after the other."""
    done = {result.key for result in results}
    waiting = [case for case in planned if case.key not in done]
    for result in judge_cases(place, waiting, at_once):
        results.add(result)
        click.echo(_line(result))


def _line(result: Result) -> str:
    said = result.error or f"{cases.mean(result.held):.3f} held"
    cost = f"{result.merge_cpu_s:.0f} + {result.score_cpu_s:.0f} processor seconds"
    return f"{' '.join(result.key)}: {said}, {cost}"


def _require(path: Path, sizes: Mapping[str, Any]) -> None:
    """Refuse to mix two sizes in one folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(sizes))
    found = json.loads(path.read_text())
    if found != dict(sizes):
        raise click.UsageError(
            f"{path.parent} was begun with {found}; take these or another FOLDER"
        )


def _write_prompts(folder: Path, taught: Mapping[str, list[Item]]) -> dict[str, Path]:
    """Texts of each skill, and of all for the mixed runs: group -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        skill: [
            f"{item.prompt} {item.right}" for item in Random(skill).sample(taught[skill], PROMPTS)
        ]
        for skill in questions.SKILLS
    }
    texts["mixed"] = [text for own in texts.values() for text in own[:: len(questions.SKILLS)]]
    files = {group: folder / f"{group}.jsonl" for group in texts}
    for group, own in texts.items():
        files[group].write_text("".join(json.dumps({"text": text}) + "\n" for text in own))
    return files


if __name__ == "__main__":
    main()
