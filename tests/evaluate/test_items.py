"""Clusters and the identity of a part come from the items, not from the scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergeops.errors import EvaluationError
from mergeops.evaluate.items import (
    asked_digest,
    check_clusters,
    part_digests,
    part_sizes,
    part_sketches,
    with_clusters,
)
from mergeops.evaluate.tasks import TaskSet, load_tasks
from mergeops.recipe.settings import EvaluateSpec
from mergeops.scores import ItemResult, Scores, TaskScore, pooled_score

Write = Callable[..., Path]


def rows(n: int = 12) -> list[dict[str, Any]]:
    choices = ["a", "b"]
    return [
        {"prompt": f"{i}?", "choices": choices, "answer": 0, "page": f"p{i // 3}"} for i in range(n)
    ]


def load(path: Path, **settings: Any) -> TaskSet:
    return load_tasks(EvaluateSpec(tasks=(str(path),), **settings))


def test_items_get_the_cluster_that_their_field_names(write_task: Write) -> None:
    tasks = load(write_task(items=rows()), clusters={"sums": "page"})
    items = tuple(ItemResult(i, "d", "p", "t", 1.0) for i in (0, 4, 11))
    scores = Scores("00", "dev", {"sums": TaskScore("sums", "acc", 1, None, items, "1", "x")}, {})
    found = with_clusters(scores, tasks)
    assert [item.cluster for item in found.tasks["sums"].items] == ["p0", "p1", "p3"]
    assert with_clusters(scores, load(write_task(items=rows()))) == scores


def test_a_long_passage_is_named_by_its_digest(write_task: Write) -> None:
    items = [{**row, "page": "word " * 100 + row["page"]} for row in rows()]
    tasks = load(write_task(items=items), clusters={"sums": "page"})
    results = tuple(ItemResult(i, "d", "p", "t", 1.0) for i in (0, 1, 3))
    made = TaskScore("sums", "acc", 1, None, results, "1", "x")
    found = with_clusters(Scores("00", "dev", {"sums": made}, {}), tasks).tasks["sums"].items
    assert found[0].cluster == found[1].cluster != found[2].cluster
    assert {len(item.cluster) for item in found} == {16}


def test_a_field_that_items_lack_is_named_with_what_they_have(write_task: Write) -> None:
    items = rows()
    del items[5]["page"]
    tasks = load(write_task(items=items), clusters={"sums": "page"})
    message = (
        r"evaluate\.clusters\.sums is 'page', which 1 of 12 items lack, item 5 first; "
        "its fields: prompt, choices, answer"
    )
    with pytest.raises(EvaluationError, match=message):
        check_clusters(tasks)


def test_a_task_that_is_not_scored_is_named(write_task: Write) -> None:
    tasks = load(write_task(items=rows()), clusters={"other": "page"})
    with pytest.raises(EvaluationError, match="task 'other' is not scored; the tasks are: sums"):
        check_clusters(tasks)


def test_how_items_are_scored_does_not_make_them_new_ones(write_task: Write) -> None:
    path = write_task(items=rows())
    before = part_digests(load(path), "confirm")
    again = load(path, batch_size=4, dtype="bfloat16")
    assert part_digests(again, "confirm") == before
    assert part_digests(load(path), "dev") != before
    assert part_digests(load(path, split_salt="x"), "confirm") != before
    sizes = [part_sizes(load(path), part)["sums"] for part in ("dev", "confirm")]
    assert sum(sizes) == 12


@pytest.mark.parametrize(
    "changes", [{"limit": 101}, {"confirm_fraction": 0.51}, {"split_salt": "x"}, {"more": 1}, {}]
)
def test_parts_that_overlap_have_a_sketched_item_in_common(
    write_task: Write, changes: dict[str, Any]
) -> None:
    before = load(write_task(items=rows(300)), limit=100)
    settings = {"limit": 100, **changes}
    items = rows(300 + settings.pop("more", 0))
    after = load(write_task("renamed", items=items), **settings)
    old, new = (part_sketches(tasks, "confirm") for tasks in (before, after))
    assert len(old["sums"].split()) == len(set(old["sums"].split())) == 64
    assert set(old["sums"].split()) & set(new["renamed"].split())


def test_prompts_metrics_and_clusters_are_what_is_asked_and_batches_are_not(
    write_task: Write,
) -> None:
    path = write_task(items=rows())
    asked = asked_digest(load(path), "confirm")
    assert asked_digest(load(path, batch_size=4, dtype="bfloat16"), "confirm") == asked
    assert asked_digest(load(path, clusters={"sums": "page"}), "confirm") != asked
    assert asked_digest(load(path, metrics={"sums": "acc_norm"}), "confirm") != asked
    other = write_task(items=rows(), doc_to_text="Question: {{prompt}}")
    assert asked_digest(load(other), "confirm") != asked


def test_the_mean_of_zeros_and_ones_gets_wilsons_interval() -> None:
    items = tuple(ItemResult(i, "d", "p", "t", float(i < 6)) for i in range(10))
    scores = Scores("00", "dev", {"a": TaskScore("a", "acc", 0.6, None, items, "1", "x")}, {})
    found = pooled_score(scores)
    # Wilson's interval of 6 of 10, from the formula.
    assert (found.low, found.high) == pytest.approx((0.31267, 0.83182), abs=1e-5)
    assert str(found) == "0.600 [0.313, 0.832]"
    clustered = tuple(dataclasses.replace(i, cluster=str(i.doc_id // 2)) for i in items)
    task = dataclasses.replace(scores.tasks["a"], items=clustered)
    wide = pooled_score(dataclasses.replace(scores, tasks={"a": task}))
    assert (wide.method, wide.value) == ("clustered t", pytest.approx(0.6))
    assert wide.high - wide.low > found.high - found.low


def test_clusters_that_are_all_right_are_no_certainty() -> None:
    items = tuple(ItemResult(i, "d", "p", "t", 1.0, str(i // 5)) for i in range(20))
    scores = Scores("00", "dev", {"a": TaskScore("a", "acc", 1.0, None, items, "1", "x")}, {})
    found = pooled_score(scores)
    assert (found.low, found.high) == pytest.approx((0.025 ** (1 / 4), 1.0))
