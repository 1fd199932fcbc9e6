"""What the last lines of a run say: better, not shown or worse, by the paired intervals."""

from __future__ import annotations

from support.tracking_case import make_scores

from mergeops.report import standing_of

N = 40


def scores(right: int) -> object:
    """Of one task; the first ``right`` of 40 items are right."""
    return make_scores(right={"sums": right}, n=N)


def test_better_than_the_best_parent_and_the_base_is_better() -> None:
    standing = standing_of(scores(30), {"base": scores(10), "a": scores(12), "b": scores(15)})
    assert (standing.outcome, standing.is_ahead, standing.advice) == ("better", True, "")
    assert [(each.reference, each.kind) for each in standing.against] == [
        ("b", "best parent"),
        ("base", "base"),
    ]
    # 15 of 40 items won, none lost.
    assert standing.parent.difference.difference == 15 / 40


def test_an_interval_that_holds_zero_shows_nothing() -> None:
    """One item of 40 is won and none lost: chance does that every other time."""
    standing = standing_of(scores(21), {"a": scores(20)})
    assert (standing.outcome, standing.is_ahead) == ("not shown", True)
    assert str(standing).startswith("not shown to be better than the best parent a: +0.025 [")
    assert "score more items or tasks" in standing.advice


def test_below_the_best_parent_is_not_ahead_even_by_chance() -> None:
    standing = standing_of(scores(19), {"a": scores(20)})
    assert (standing.outcome, standing.is_ahead) == ("not shown", False)
    assert "fewer sources" in standing.advice


def test_worse_than_the_base_is_worse_although_it_beats_its_parents() -> None:
    standing = standing_of(scores(20), {"base": scores(35), "a": scores(2)})
    assert standing.outcome == "worse"
    assert [each.outcome for each in standing.against] == ["better", "worse"]
    assert str(standing.against[1]).startswith("worse than the base: -0.375 [")
    assert "`mergeops inspect`" in standing.advice


def test_a_merge_without_sources_stands_nowhere() -> None:
    assert standing_of(scores(3), {"base": scores(2)}) is None


def test_the_standing_is_json() -> None:
    plain = standing_of(scores(30), {"a": scores(15)}).to_dict()
    [against] = plain["against"]
    assert plain["outcome"] == against["outcome"] == "better"
    assert (against["reference"], against["difference"]) == ("a", 15 / 40)
    assert 0 < against["low"] < 15 / 40 < against["high"]
