"""Small local lm-eval tasks: JSONL and YAML, no download."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

WORDS = ("one", "two", "three", "four", "five", "six", "seven")


def sums(n: int, first: int = 0) -> list[dict[str, Any]]:
    """Questions with four answers of several tokens each."""
    items = []
    for i in range(first, first + n):
        choices = [f"{i} {WORDS[(i + step) % 7]}" for step in range(4)]
        items.append({"prompt": f"What follows {i}?", "choices": choices, "answer": i % 4})
    return items


@pytest.fixture(scope="module")
def llama(tiny_llama: Callable[..., Path]) -> Path:
    """A tiny model, one for each module."""
    return tiny_llama()


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """Write a multiple-choice task; keywords change or add keys of its YAML, None takes one out."""

    def write(
        name: str = "sums",
        items: list[dict[str, Any]] | None = None,
        folder: Path | None = None,
        **changes: Any,
    ) -> Path:
        folder = folder or tmp_path / "tasks"
        folder.mkdir(exist_ok=True, parents=True)
        data = folder / f"{name}.jsonl"
        rows = sums(24) if items is None else items
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task: Mapping[str, Any] = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "Q: {{prompt}} A:",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": [
                {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            ],
            "metadata": {"version": 2.0},
            **changes,
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in task.items() if v is not None}))
        return path

    return write
