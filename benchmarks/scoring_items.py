"""Items for the scoring benchmark: made up, of the shapes that known benchmarks have."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PEOPLE = ("Anna", "Boris", "Clara", "David", "Elena", "Farid", "Greta", "Hugo", "Irene", "Jonas")
THINGS = ("red lamp", "old map", "glass jar", "brass key", "blue coat", "small drum", "wool rug")
PLACES = (
    "the back garden",
    "the town library",
    "a narrow attic",
    "the harbour office",
    "her uncle's barn",
    "the village school",
    "a quiet bakery",
    "the station hall",
)
TIMES = ("Early on Monday", "After lunch", "Late in the evening", "Two days later", "At noon")
DEEDS = ("carried the {} to", "found the {} in", "left the {} behind in", "hid the {} in")
REASONS = (
    "because it looked like rain",
    "although nobody had asked for it",
    "since the door had been left open",
    "and did not tell anyone about it",
)

SHAPES = {
    "story": "0-shot, one question on a story of its own, 4 answers of a few words",
    "reading": "0-shot, three questions on a passage (as RACE has), 4 answers of a few words",
    "story_fixed": "3-shot, the same three examples before every item (as MMLU has), 4 answers",
    "story_drawn": "3-shot, other examples before each item (lm-eval's default), 4 answers",
    "letters": "0-shot, 4 answers in the prompt, asked for a letter",
    "letters_fixed": "5-shot, the same five examples (as MMLU has), asked for a letter",
}
"""What each task is."""


def write_tasks(folder: Path, items: int) -> list[str]:
    """Write JSONL data and task YAML; give the tasks' names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHAPES:
        rng = random.Random(name)
        few = items if "drawn" not in name else max(4, items // 3)
        _write(folder / f"{name}.test.jsonl", _items(rng, few, name))
        _write(folder / f"{name}.train.jsonl", _items(rng, 60, name))
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(_task(folder, name)))
    return list(SHAPES)


def _items(rng: random.Random, n: int, name: str) -> Iterator[dict[str, Any]]:
    sentences = {"story": 9, "reading": 9}.get(name, 3)
    story: list[tuple[str, str, str]] = []
    text = ""
    for i in range(n):
        if i % (3 if name == "reading" else 1) == 0:
            people = rng.sample(PEOPLE, min(sentences, len(PEOPLE)))
            story = [(p, rng.choice(THINGS), rng.choice(PLACES)) for p in people]
            text = " ".join(
                f"{rng.choice(TIMES)} {person} {rng.choice(DEEDS).format(thing)} {place} "
                f"{rng.choice(REASONS)}."
                for person, thing, place in story
            )
        person, thing, place = rng.choice(story)
        others = rng.sample([p for p in PLACES if p != place], 3)
        answers = rng.sample([place, *others], 4)
        yield {
            "text": text,
            "question": f"Where was {person} with the {thing}?",
            "answers": answers,
            "answer": answers.index(place),
        }


def _task(folder: Path, name: str) -> dict[str, Any]:
    shots = {"story_fixed": 3, "story_drawn": 3, "letters_fixed": 5}.get(name, 0)
    letters = name.startswith("letters")
    listed = "".join(f"\n{x}. {{{{answers[{i}]}}}}" for i, x in enumerate("ABCD"))
    task: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {
                split: str(folder / f"{name}.{split}.jsonl") for split in ("train", "test")
            }
        },
        "test_split": "test",
        "fewshot_split": "train",
        "num_fewshot": shots,
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}\nQuestion: {{question}}"
        + (listed if letters else "")
        + "\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"] if letters else "answers",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    if name.endswith("fixed"):
        task["fewshot_config"] = {"sampler": "first_n"}
    return task


def _write(path: Path, items: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
