"""Racing: stages of items, who is dropped, and how often the best is."""

from __future__ import annotations

import random

import pytest

from mergeops.scores import ItemResult, Scores, TaskScore
from mergeops.search.racing import Race, stages


def scored(values: list[float]) -> Scores:
    items = tuple(ItemResult(i, f"d{i}", "p", "t", value) for i, value in enumerate(values))
    mean = sum(values) / len(values)
    task = TaskScore("t", "acc", mean, None, items, "1", f"of {len(values)}")
    return Scores("w", "dev", {"t": task}, {})


def asked(answers: list[float], shares: tuple[float, ...]) -> dict[float, Scores]:
    return {share: scored(answers[: round(share * len(answers))]) for share in shares}


@pytest.mark.parametrize(
    ("items", "shares"),
    [
        (48, (1.0,)),
        (191, (1.0,)),
        (192, (0.25, 1.0)),
        (800, (1 / 16, 0.25, 1.0)),
        (10**6, (1 / 64, 1 / 16, 0.25, 1.0)),
    ],
)
def test_each_stage_has_a_quarter_of_the_next_and_at_least_48_items(
    items: int, shares: tuple[float, ...]
) -> None:
    assert stages(items) == shares


def test_the_first_candidate_and_the_last_stage_are_never_dropped() -> None:
    race = Race((0.25, 1.0), margin=0.01, alpha=0.05)
    wrong = asked([0.0] * 400, (0.25, 1.0))
    assert not race.is_lost(race.look(0.25, wrong[0.25]))
    race.finish(asked([1.0] * 400, (0.25, 1.0)))
    assert race.look(1.0, wrong[1.0]) is None
    assert race.is_lost(race.look(0.25, wrong[0.25]))


def test_the_leader_is_the_best_of_those_that_were_asked_everything() -> None:
    race = Race((1.0,), margin=0.01, alpha=0.05)
    assert race.finish({1.0: scored([1.0, 0.0])})
    assert not race.finish({1.0: scored([0.0, 1.0])}), "an equal does not take over"
    assert race.finish({1.0: scored([1.0, 1.0])})
    assert race.merit == 1.0


def test_a_candidate_that_leads_by_the_margin_is_dropped_in_at_most_alpha_of_the_races() -> None:
    """Answers of one difficulty an item, so that merges of a family mostly agree."""
    draw, shares = random.Random(0), (1 / 16, 0.25, 1.0)
    races, dropped = 400, 0
    for _ in range(races):
        easy = [draw.random() for _ in range(800)]
        leader = [float(draw.random() < e) for e in easy]
        # One item in twenty is drawn anew, with a lead of 1 point.
        better = [
            (1.0 if draw.random() < 0.7 else 0.0) if draw.random() < 0.05 else answer
            for answer in leader
        ]
        race = Race(shares, margin=0.01, alpha=0.05)
        race.finish(asked(leader, shares))
        stage = asked(better, shares)
        dropped += any(race.is_lost(race.look(s, stage[s])) for s in shares[:-1])
    assert dropped <= 0.05 * races


def test_a_candidate_that_is_far_behind_costs_the_first_stage() -> None:
    draw, shares = random.Random(1), (1 / 16, 0.25, 1.0)
    lost = 0
    for _ in range(100):
        leader = [float(draw.random() < 0.7) for _ in range(800)]
        worse = [float(draw.random() < 0.3) for _ in range(800)]
        race = Race(shares, margin=0.01, alpha=0.05)
        race.finish(asked(leader, shares))
        lost += race.is_lost(race.look(shares[0], asked(worse, shares)[shares[0]]))
    assert lost >= 90
