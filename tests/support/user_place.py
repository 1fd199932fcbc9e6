"""A user's directory: tiny models, tiny tasks, a recipe; and the command line run in it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.forked_commands import forked_commands

RECIPE = """# @package _global_
base: base
sources: {math: {uri: math}, dates: {uri: dates}, units: {uri: units}}
evaluate: {tasks: [add, sub], include_path: tasks}
"""


def write_task(folder: Path, name: str, sign: int, n: int = 80) -> None:
    draw = random.Random(name)
    rows = []
    for _ in range(n):
        a, b = draw.randrange(50), draw.randrange(50)
        right = a + sign * b
        choices = [str(right), str(right + 1), str(right - 1), str(right + 10)]
        rows.append({"prompt": f"{a} {'+-'[sign < 0]} {b} =", "choices": choices, "answer": 0})
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    # JSON is YAML.
    (folder / f"{name}.yaml").write_text(json.dumps(task))


@pytest.fixture
def place(tiny_llama: Callable[..., Path], template_database: Path, tmp_path: Path) -> Path:
    """A user's directory: a base, three fine-tunes, two tasks, a recipe, an MLflow database."""
    return furnish(tmp_path, tiny_llama, template_database, layers=6, hidden=256)


def furnish(
    place: Path, tiny_llama: Callable[..., Path], template_database: Path, **sizes: int
) -> Path:
    """Write what is in a user's directory, with models of these sizes."""
    base = tiny_llama(path=place / "base", **sizes)
    for seed, name in enumerate(("math", "dates", "units"), 1):
        tiny_llama(path=place / name, like=base, seed=seed, noise=0.02)
    (place / "tasks").mkdir()
    write_task(place / "tasks", "add", 1)
    write_task(place / "tasks", "sub", -1)
    (place / "conf" / "recipe").mkdir(parents=True)
    (place / "conf" / "recipe" / "three.yaml").write_text(RECIPE)
    (place / "mlflow.db").write_bytes(template_database.read_bytes())
    return place


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mergeops", *words]


def environment(place: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", **more}


def mergeops(place: Path, *words: str, code: int = 0, **more: str) -> str:
    """What the command writes to stdout; ``more`` is environment."""
    done = ended(place, *words, **more)
    assert done.returncode == code, done.stderr
    return done.stdout


def ended(place: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command, run to its end in the user's directory."""
    return forked_commands().run(place, words, environment(place, **more))
