"""Held-out items as lm-eval tasks: one JSONL and one YAML file a skill."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from demo.skills import SKILLS, Item, unique

ITEMS_PER_SKILL = 350


def write_tasks(
    folder: Path, seed: int, n: int = ITEMS_PER_SKILL, skills: Iterable[str] = SKILLS
) -> list[str]:
    """Write ``n`` held-out items of each skill below ``folder``; return the task names."""
    names = list(skills)
    for skill in names:
        write_task(folder, skill, unique(skill, "heldout", n, seed))
    return names


def write_task(folder: Path, name: str, items: Iterable[Item]) -> None:
    """Write one task of that name.

    The YAML holds the absolute path of its JSONL: lm-eval resolves a relative one against the
    current directory, not against the YAML.
    """
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    data = (folder / f"{name}.jsonl").resolve()
    data.write_text("".join(map(_line, items)), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": " ",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))


def _line(item: Item) -> str:
    fields = {"prompt": item.prompt, "choices": list(item.choices), "answer": item.answer}
    return json.dumps(fields) + "\n"
