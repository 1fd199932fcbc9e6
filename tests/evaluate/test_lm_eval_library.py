"""Every task that lm-eval ships is classified, and docs/scoring.md says how many are what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mergeops.evaluate.metric_kinds import kind_of, unusable

DOCS = Path(__file__).parents[2] / "docs" / "scoring.md"
VERSION = "0.4.13"
KINDS = {
    "mean": "by item",
    "units": "by nats or bits a unit",
    "corpus": "by drawing all items again",
}


def own_function(items: list[Any]) -> float:
    """Stands for a function of the task's own."""
    raise AssertionError("only its identity counts")


def aggregation_of(entry: Mapping[str, Any]) -> Any:
    from lm_eval.api.registry import get_aggregation, get_metric_aggregation

    named, metric = entry.get("aggregation"), entry["metric"]
    if named is None:
        return get_metric_aggregation(metric) if isinstance(metric, str) else None
    return own_function if callable(named) or "/" in str(named) else get_aggregation(named)


def direction_of(entry: Mapping[str, Any]) -> bool | None:
    from lm_eval.api.registry import is_higher_better

    return entry.get("higher_is_better", is_higher_better(str(entry["metric"])))


def entries_of(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    default = DEFAULT_METRIC_REGISTRY[config.get("output_type", "generate_until")]
    return config.get("metric_list") or [{"metric": name} for name in default]


def classified(config: Mapping[str, Any]) -> str:
    """What a task is chosen by where the recipe names no metric, or why it is not scored."""
    if "class" in config:
        return "Python class: as its `aggregation()` says"
    if config.get("unsafe_code"):
        return "refused: runs code that the model writes"
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        return "refused: needs images or sound"
    entries = entries_of(config)
    chosen = next((e for e in entries if e["metric"] == "acc"), entries[0])
    aggregation = aggregation_of(chosen)
    if aggregation is None:
        return "refused: lm-eval has no aggregation of it"
    own_results = config.get("process_results") is not None
    if unusable(str(chosen["metric"]), aggregation, own_results=own_results):
        return "refused: lm-eval itself has no number of it"
    if not isinstance(direction_of(chosen), bool):
        return "asked for: `evaluate.higher_is_better`"
    return KINDS[kind_of(aggregation).kind]


def rule_of(config: Mapping[str, Any]) -> str:
    aggregated = config.get("aggregate_metric_list") or []
    aggregated = [aggregated] if isinstance(aggregated, Mapping) else aggregated
    if not aggregated:
        return "group without a number of its own"
    by_size = {bool(each.get("weight_by_size", True)) for each in aggregated}
    return "group by size" if by_size == {True} else "group that counts each task once"


@pytest.fixture(scope="module")
def library() -> list[Mapping[str, Any]]:
    import lm_eval.tasks
    from lm_eval.api import metrics  # noqa: F401 (fills the registries)
    from lm_eval.tasks._yaml_loader import load_yaml

    root = Path(lm_eval.tasks.__file__).parent
    return [load_yaml(path, resolve_func=False) for path in sorted(root.rglob("*.yaml"))]


@pytest.mark.slow
def test_every_task_of_lm_eval_is_classified_and_counted_in_the_docs(
    library: list[Mapping[str, Any]],
) -> None:
    from importlib.metadata import version

    counts: Counter[str] = Counter()
    for config in library:
        if "group" in config and "class" not in config:
            counts[rule_of(config)] += 1
        elif "task" in config:
            counts[classified(config)] += 1
        else:
            counts["template that others include"] += 1
    assert sum(counts.values()) == len(library)
    rows = [f"| {kind} | {count:,} |" for kind, count in counts.most_common()]
    if version("lm_eval") == VERSION:
        assert [row for row in rows if row not in DOCS.read_text(encoding="utf-8")] == []


@pytest.mark.slow
def test_no_task_of_lm_eval_is_refused_for_the_name_of_its_metric(
    library: list[Mapping[str, Any]],
) -> None:
    refused: Counter[str] = Counter()
    for config in library:
        if "task" not in config or "group" in config or "class" in config:
            continue
        for entry in entries_of(config):
            aggregation, metric = aggregation_of(entry), str(entry["metric"])
            own_results = config.get("process_results") is not None
            if aggregation is None or unusable(metric, aggregation, own_results=own_results):
                refused[metric] += 1
    assert set(refused) <= {"bypass", "likelihood"} | {m for m in refused if "/" in m}
