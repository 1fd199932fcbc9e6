"""A task that one merge is best at: its right answers are what the mean of two models likes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ITEMS = 240


def write_liked(folder: Path, one: Path, other: Path) -> None:
    """Write the task ``liked``: 240 questions of four choices.

    Args:
        folder: made; the task's YAML and data lie there.
        one: a model's directory.
        other: the second's.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(one)
    mean, second = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (one, other))
    with torch.no_grad():
        for p, q in zip(mean.parameters(), second.parameters(), strict=True):
            p.copy_((p + q) / 2)
    draw, rows = random.Random(0), []
    for _ in range(ITEMS):
        prompt = f"{draw.randrange(1000)} {draw.choice('abcdefgh')} ="
        choices = draw.sample("qrstuvwxyz", 4)
        # A choice is one letter: all have the same length, and differ in their last token.
        ids = tokenizer([f"{prompt} {c}" for c in choices], return_tensors="pt").input_ids
        with torch.no_grad():
            logits = mean(ids).logits[:, -2].log_softmax(-1)
        liked = logits.gather(1, ids[:, -1:])[:, 0].tolist()
        rows.append({"prompt": prompt, "choices": choices, "answer": liked.index(max(liked))})
    data = folder / "liked.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task: dict[str, Any] = {
        "task": "liked",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (folder / "liked.yaml").write_text(json.dumps(task))
