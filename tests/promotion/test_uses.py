"""Every use of the confirm part is counted, once, and its level follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mergeops.errors import TrackingError
from mergeops.promotion.uses import Use, count_use, next_use, uses
from mergeops.store.connection import Tracking


def use(weights: str = "a", **changes: Any) -> Use:
    made = Use(
        version=1,
        weights_sha256=weights,
        references={"best_parent:math": "m"},
        primary=("add", "sub"),
        parts={"add": "1", "sub": "2"},
        at="2026-01-01T00:00:00Z",
        by="ann",
        alpha=0.06,
    )
    return replace(made, **changes)


@pytest.fixture
def model(tracking: Tracking) -> Tracking:
    tracking.client.create_registered_model("skills")
    return tracking


def numbers(model: Tracking, *wanted: Use) -> list[int]:
    return [count_use(model, "skills", one).number for one in wanted]


def test_uses_are_numbered_and_kept_in_mlflow(model: Tracking) -> None:
    assert next_use(model, "skills", use("a")).number == 1
    first = count_use(model, "skills", use("a"))
    assert (first.number, first.level) == (1, pytest.approx(0.03))
    later = use("b", at="2026-01-02T00:00:00Z")
    assert next_use(model, "skills", later).number == 2
    second = count_use(model, "skills", later)
    assert (second.number, second.level) == (2, pytest.approx(0.01))
    assert uses(model, "skills") == [first, second]


def test_the_same_question_again_is_the_same_use(model: Tracking) -> None:
    again = use("a", at="2027-01-01T00:00:00Z", by="ben", version=7)
    assert numbers(model, use("a"), use("b"), again, use("b"), use("c")) == [1, 2, 1, 2, 3]
    assert uses(model, "skills")[0].by == "ann"


@pytest.mark.parametrize(
    "change",
    [
        {"references": {"champion:2": "c"}},
        {"primary": ("add",)},
        {"weights_sha256": "b"},
        {"asked": "x"},
    ],
)
def test_another_question_about_the_same_items_is_another_use(
    model: Tracking, change: dict[str, Any]
) -> None:
    assert numbers(model, use(), use(**change)) == [1, 2]


def test_one_shared_task_is_enough_to_count(model: Tracking) -> None:
    assert numbers(model, use(), use(parts={"add": "1", "new": "3"})) == [1, 2]


def test_other_items_are_another_confirm_part(model: Tracking) -> None:
    assert numbers(model, use(), use(parts={"add": "9", "sub": "8"})) == [1, 1]


def test_parts_that_have_one_sketched_item_in_common_share_alpha(model: Tracking) -> None:
    one = use("a", parts={"add": "1"}, sketches={"1": "aa bb cc"})
    renamed = use("b", parts={"plus": "7"}, sketches={"7": "bb dd"})
    other = use("c", parts={"add": "8"}, sketches={"8": "ee ff"})
    assert numbers(model, one, renamed, other) == [1, 2, 1]
    assert [next_use(model, "skills", u).number for u in (one, renamed, other)] == [1, 2, 1]


def test_of_the_alpha_then_and_now_the_smaller_holds(model: Tracking) -> None:
    count_use(model, "skills", use(alpha=0.06))
    for alpha, level in ((0.02, 0.01), (0.2, 0.03)):
        assert next_use(model, "skills", use(alpha=alpha)).level == pytest.approx(level)
        assert count_use(model, "skills", use(alpha=alpha)).level == pytest.approx(level)


def test_a_use_of_many_large_tasks_fits_into_tags_of_5000_characters(model: Tracking) -> None:
    from mergeops.tracking.versions import find_registered_model

    sketch = " ".join(f"{i:012x}" for i in range(64))
    parts = {f"mmlu_high_school_government_{i}": f"{i:016x}" for i in range(57)}
    sketches = dict.fromkeys(parts.values(), sketch)
    many = count_use(model, "skills", use(parts=parts, primary=tuple(parts), sketches=sketches))
    assert uses(model, "skills") == [many]
    assert max(map(len, find_registered_model(model, "skills").tags.values())) < 5000


def test_a_use_that_was_cut_off_before_its_number_still_counts(model: Tracking) -> None:
    class Cut:
        def __init__(self) -> None:
            self.writes = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(model.client, name)

        def set_registered_model_tag(self, *words: str) -> None:
            if self.writes:
                raise KeyboardInterrupt
            self.writes += 1
            model.client.set_registered_model_tag(*words)

    cut: Any = Cut()
    with pytest.raises(KeyboardInterrupt):
        count_use(replace(model, client=cut), "skills", use("a"))
    assert next_use(model, "skills", use("a")).number == 1
    assert numbers(model, use("b"), use("a")) == [2, 2]


def test_a_model_that_does_not_exist_is_named(model: Tracking) -> None:
    with pytest.raises(TrackingError, match="there is no registered model 'other'"):
        count_use(model, "other", use())
