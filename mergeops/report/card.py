"""The model card: README.md of a merge, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mergeops.scores import Estimate


@dataclass(frozen=True)
class CardParent:
    """One input of the merge."""

    name: str
    """The recipe's name of it, or ``base``."""
    uri: str
    sha256: str
    """Digest of its weights."""
    run_id: str | None = None
    """The MLflow run that trained it."""
    short_name: str | None = None
    """What the card calls it; empty for the recipe's name, None for the end of its URI."""


def model_card(
    title: str,
    parents: Sequence[CardParent],
    recipe: Mapping[str, Any],
    *,
    plan_digest: str,
    scores: Mapping[str, Mapping[str, Estimate]] | None = None,
    part: str = "dev",
    is_adapter: bool = False,
) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        title: the merge's name.
        parents: base first, where there is one, then the sources.
        recipe: what was merged, as JSON types without credentials (``Recipe.weights_dict``).
        plan_digest: names the merge.
        scores: model -> task -> score, the merge and whatever it is shown beside.
        part: the part of the items that the scores are on.
        is_adapter: whether it is an adapter of the first parent.
    """
    bases = parents[:1] if is_adapter else parents
    front = {
        "base_model": list(dict.fromkeys(base_model(parent) for parent in bases)),
        "base_model_relation": "adapter" if is_adapter else "merge",
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "mergeops"],
    }
    tool = (recipe.get("tool") or {}).get("name")
    method = tool or (recipe.get("method") or {}).get("name", "unknown")
    sources = sum(parent.name != "base" for parent in parents)
    made = f"Made by `mergeops {tool}` of" if tool else "A merge of"
    made += f" {len(parents) if tool else sources} model"
    made += "s" if (len(parents) if tool else sources) != 1 else ""
    made += "" if tool else f" by `{method}`, made with mergeops"
    blocks = [
        f"---\n{_yaml(front)}---",
        f"# {_line(title)}",
        f"{made} (plan `{plan_digest[:12]}`).",
        f"## Merged models\n\n{_parents_table(parents)}",
    ]
    if scores:
        note = "dev part, which the recipe was chosen on"
        if part != "dev":
            note = "confirm part, which no choice has seen"
        table = _scores_table(scores)
        blocks.append(f"## Scores\n\n{table}\n\nScores with 95 % intervals on the {note}.")
    blocks.append(f"## Recipe\n\n```yaml\n{_yaml(recipe)}```")
    return "\n\n".join(blocks) + "\n"


def base_model(parent: CardParent) -> str:
    """How the card names an input: its hub id, else the last part of its path, else its name."""
    if parent.short_name is not None:
        return parent.short_name or parent.name
    return parent.uri.rstrip("/").rpartition("/")[2] or parent.name


def _parents_table(parents: Sequence[CardParent]) -> str:
    rows = ["| | from | MLflow run | sha256 of the weights |", "| --- | --- | --- | --- |"]
    for parent in parents:
        run = f"`{parent.run_id}`" if parent.run_id else ""
        cells = (_cell(parent.name), _code(parent.uri), run, f"`{parent.sha256}`")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _scores_table(scores: Mapping[str, Mapping[str, Estimate]]) -> str:
    tasks = list(dict.fromkeys(task for by_task in scores.values() for task in by_task))
    rows = [
        f"| model | {' | '.join(_cell(task) for task in tasks)} |",
        f"| --- |{' ---: |' * len(tasks)}",
    ]
    for model, by_task in scores.items():
        cells = [_score(by_task.get(task)) for task in tasks]
        rows.append(f"| {_cell(model)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _score(score: Estimate | None) -> str:
    return "" if score is None or not math.isfinite(score.value) else str(score)


def _yaml(value: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(value))
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return "`" + _line(text).replace("`", "'").replace("|", "\\|") + "`"


def _line(text: str) -> str:
    return " ".join(text.split())
