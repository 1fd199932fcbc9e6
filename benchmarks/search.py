"""What a search costs and finds: SEARCH.md.

    python -m benchmarks.search answers DIR              # the answers of many merges of the demo
    python -m benchmarks.search replay DIR               # races over those answers
    python -m benchmarks.search compare DIR --seeds N    # CMA-ES asked everything against racing
    python -m benchmarks.search workers                  # what workers do with their time
    python -m benchmarks.search trials DIR --earlier CHECKOUT   # a trial against an earlier `run`

The models are the demo's: a base of two million parameters and its fine-tunes. Their questions are
generated, so that there may be as many as a race needs.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.measure import measure
from benchmarks.replay import equal_candidates, race_figures
from benchmarks.search_workers import utilisation

SOURCES = ("comparison", "dates", "sorting", "spelling", "units")
"""Fine-tunes of the demo, each of a skill, and the tasks."""


@click.group()
def main() -> None:
    """Measure searches."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@main.command()
@FOLDER
@click.option("--items", default=600, show_default=True, help="Of each skill.")
@click.option("--trials", default=72, show_default=True, help="Merges, beside the baselines.")
def answers(folder: Path, items: int, trials: int) -> None:
    """Ask every merge of one study everything, and keep the answers."""
    place = prepare(folder, items)
    found = study(place, "answers", f"search.trials={trials}", "search.racing=false")
    click.echo(json.dumps(found["cost"]))


@main.command()
@FOLDER
@click.option("--replays", default=1000, show_default=True)
@click.option("--candidates", default=64, show_default=True)
def replay(folder: Path, replays: int, candidates: int) -> None:
    """Race over the answers, in other orders and with other draws of items."""
    matrix = read_matrix(folder / "answers")
    truth = np.sort(matrix.mean(axis=1))[::-1]
    click.echo(f"{len(matrix)} merges x {matrix.shape[1]} items")
    click.echo(f"best {truth[0]:.3f}, tenth {truth[9]:.3f}, middle {statistics.median(truth):.3f}")
    for factor in (1, 2, 4):
        size = factor * matrix.shape[1]
        click.echo(f"{size} items: {rounded(race_figures(matrix, replays, size, candidates))}")
        equal = equal_candidates(matrix, replays, size, size, candidates)
        click.echo(f"{size} items, equal candidates: {rounded(equal)}")


@main.command()
@FOLDER
@click.option("--seeds", default=10, show_default=True)
@click.option("--items", default=600, show_default=True, help="Of each skill.")
@click.option("--limit", default=80, show_default=True, help="Dev items of each skill.")
def compare(folder: Path, seeds: int, items: int, limit: int) -> None:
    """CMA-ES at 100 full evaluations, and racing for at most 25, on the same space."""
    place = prepare(folder, items)
    space = "{method: task_arithmetic, sources.*.weight: [0.0, 1.0]}"
    common = (f"search.space={space}", f"evaluate.limit={limit}", "search.earlier=0")
    ways = {
        "cmaes": ("search.sampler=cmaes", "search.racing=false", "search.trials=100"),
        "racing": ("search.sampler=cmaes", "search.budget='25 evaluations'"),
        "racing tpe": ("search.sampler=tpe", "search.budget='25 evaluations'"),
    }
    for seed in range(seeds):
        for name, words in ways.items():
            began = time.monotonic()
            found = study(place, f"{name} {seed}", *common, *words, f"search.seed={seed}")
            row = {
                "seed": seed,
                "way": name,
                "evaluations": found["cost"]["full_evaluations"],
                "trials": len(found["trials"]),
                "dev": found["best_dev"],
                "held_out": found["held_out"],
                "merge_s": found["cost"]["merge_seconds"],
                "evaluation_s": found["cost"]["evaluation_seconds"],
                "s": round(time.monotonic() - began, 1),
            }
            click.echo(json.dumps(row))


@main.command()
@click.option("--trials", default=6, show_default=True, help="Of each worker.")
def workers(trials: int) -> None:
    """How much of their time 1, 2 and 4 workers merge and score, where a trial's cost is fixed."""
    click.echo("| workers | trials | seconds | merging or scoring |\n| ---: | ---: | ---: | ---: |")
    for count in (1, 2, 4):
        share, seconds = utilisation(count, count * trials)
        click.echo(f"| {count} | {count * trials} | {seconds:.1f} | {share:.1%} |")


@main.command()
@FOLDER
@click.option("--earlier", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--pairs", default=5, show_default=True)
@click.option("--trials", default=32, show_default=True, help="Of one study.")
@click.option("--items", default=350, show_default=True, help="Of each skill.")
def trials(folder: Path, earlier: Path, pairs: int, trials: int, items: int) -> None:
    """A study's seconds a trial against those of `mergeops run` of another checkout, whole
    commands in turn, all parents scored before: the demo's tasks, five sources. Seconds by the
    clock, and of the processors, which other work changes less."""
    from demo import tasks
    from demo.skills import SKILLS

    place = prepare(folder, items)
    tasks.write_tasks(place / "all", 0, items)
    common = [
        f"base={place}/demo/base",
        f"sources={sources_of(place)}",
        f"evaluate.tasks=[{','.join(SKILLS)}]",
        f"evaluate.include_path={place}/all",
        "evaluate.confirm_fraction=0.7",
        "method=task_arithmetic",
    ]
    here = Path(__file__).parents[1]

    def run(scale: float) -> tuple[float, float]:
        return timed(earlier, place / "earlier", ["run", *common, f"method.scale={scale}"])

    def study(seed: int) -> tuple[float, float]:
        words = ("strategy=optuna", f"search.trials={trials}", f"search.seed={seed}")
        return timed(here, place / "here", ["search", *common, *words, "search.earlier=0"])

    # The parents are scored and sources hashed; no scale and no seed is tried twice.
    run(1.0)
    study(pairs)
    for pair in range(pairs):
        row = {"run": run(0.5 + 0.01 * pair), "trial": [s / trials for s in study(pair)]}
        click.echo(json.dumps({name: [round(s, 2) for s in both] for name, both in row.items()}))


def timed(checkout: Path, folder: Path, words: list[str]) -> tuple[float, float]:
    """Seconds that a command of a checkout takes, by the clock and of the processors."""
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    command = [sys.executable, "-m", "mergeops", *words, f"output.dir={folder}/work"]
    wall, cpu, _ = measure(command, environment, folder, folder / "log")
    return wall, cpu


def sources_of(place: Path) -> str:
    """The fine-tunes, as a recipe's sources."""
    runs = {n: sorted((place / "demo" / "runs" / n).glob("checkpoint-*"))[-1] for n in SOURCES}
    return "{" + ", ".join(f"{n}: {{uri: {path}}}" for n, path in runs.items()) + "}"


def prepare(folder: Path, items: int) -> Path:
    """The demo's runs and questions of five skills, made where they are missing."""
    from demo import tasks, train

    folder.mkdir(parents=True, exist_ok=True)
    train.prepare(folder / "demo", "tiny", 0)
    if not (folder / "items").is_dir():
        tasks.write_tasks(folder / "items", 0, items, SOURCES)
    return folder.resolve()


def study(place: Path, name: str, *words: str) -> dict[str, Any]:
    """One study in a directory of its own; its report, and the best one's scores."""
    from mergeops.progress import Progress
    from mergeops.recipe import compose
    from mergeops.search import parameter_types, run_search

    out = place / name.replace(" ", "-")
    recipe = compose(
        [
            f"base={place}/demo/base",
            f"sources={sources_of(place)}",
            f"evaluate.tasks=[{','.join(SOURCES)}]",
            f"evaluate.include_path={place}/items",
            "evaluate.confirm_fraction=0.2"
            if name == "answers"
            else "evaluate.confirm_fraction=0.8",
            f"tracking.uri=sqlite:///{place}/mlflow.db",
            f"output.dir={out}",
            "search=optuna",
            *words,
        ],
        strategies=parameter_types(),
    )
    result = run_search(recipe, Progress())
    best = result.best or result.trials[0]
    found = {**result.report, "best_dev": best.dev_score, "held_out": None}
    if name != "answers":
        found["held_out"] = held_out(recipe, best.checkpoint)
    return found


def held_out(recipe: Any, checkpoint: Path) -> float:
    """A merge's score on the confirm part, whole."""
    import dataclasses

    from mergeops.progress import Progress
    from mergeops.tools import Tools

    whole = dataclasses.replace(recipe.evaluate, limit=None)
    tools = Tools(dataclasses.replace(recipe, evaluate=whole), Progress())
    return tools.score("the best", checkpoint, "confirm").pooled


def read_matrix(folder: Path) -> Any:
    """``[merges, items]`` bool: the answers of every merge that was asked everything."""
    rows = []
    for file in sorted((folder / "studies").glob("*/scores/*.json")):
        stages = json.loads(file.read_text(encoding="utf-8"))["stages"]
        if file.name.startswith("source-") or "1.0" not in stages:
            continue
        tasks = stages["1.0"]["tasks"]
        values = {(t, i["doc_id"]): i["value"] for t, s in tasks.items() for i in s["items"]}
        rows.append([bool(values[key]) for key in sorted(values)])
    return np.array(rows)


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """To four digits."""
    return {name: round(value, 4) for name, value in figures.items()}


if __name__ == "__main__":
    main()
