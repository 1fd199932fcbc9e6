"""Racing: stages of items, who is dropped, and how often the best is."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mergeops.scores import ItemResult, Scores, TaskScore
from mergeops.search.objectives import Limit, Objective, front, knee
from mergeops.search.racing import DROPPED, WAITING, WHOLE, Race, stages


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
        (95, (1.0,)),
        (96, (0.5, 1.0)),
        (400, (0.125, 0.25, 0.5, 1.0)),
        (10**6, tuple(0.5**k for k in range(5, -1, -1))),
    ],
)
def test_each_stage_has_half_of_the_next_and_at_least_48_items(
    items: int, shares: tuple[float, ...]
) -> None:
    assert stages(items) == shares


def runner(race: Race, answers: list[float], *, may_wait: bool = False) -> tuple[Any, list[float]]:
    """The verdict on a candidate, and the shares that it was asked."""
    stages: dict[float, Scores] = {}

    def ask(share: float) -> Scores:
        return asked(answers, (share,))[share]

    verdict = race.run(stages, ask, may_wait=may_wait)
    if verdict.state == WHOLE:
        race.finish(str(answers), stages)
    return verdict, list(stages)


def test_the_first_candidate_and_the_last_stage_are_never_dropped() -> None:
    race = Race(shares=(0.25, 1.0), margin=0.01, alpha=0.05)
    assert runner(race, [0.0] * 400)[0].state == WHOLE
    assert runner(race, [0.0] * 100 + [1.0] * 300)[0].state == WHOLE
    verdict, shares = runner(race, [0.0] * 400)
    assert verdict.state == WHOLE, "it is as good as the leader on the first stage"
    race.finish("perfect", asked([1.0] * 400, (0.25, 1.0)))
    verdict, shares = runner(race, [0.0] * 400)
    assert (verdict.state, verdict.leader, shares) == (DROPPED, "perfect", [0.25])


def test_the_leader_is_the_best_of_those_that_were_asked_everything() -> None:
    race = Race(shares=(1.0,), margin=0.01, alpha=0.05)
    assert race.finish("a", {1.0: scored([1.0, 0.0])})
    assert not race.finish("b", {1.0: scored([0.0, 1.0])}), "an equal does not take over"
    assert race.finish("c", {1.0: scored([1.0, 1.0])})
    assert race.values == {"c": (1.0,)}


def test_one_that_is_behind_waits_and_is_asked_on_later() -> None:
    race = Race(shares=(0.25, 0.5, 1.0), margin=0.01, alpha=0.05)
    race.finish("leader", asked([1.0, 0.0] * 200, race.shares))
    behind = [0.0, 0.0] + [1.0, 0.0] * 49 + [1.0, 1.0] * 150
    verdict, shares = runner(race, behind, may_wait=True)
    assert (verdict.state, shares) == (WAITING, [0.25])
    known = asked(behind, race.shares)
    stages = {0.25: known[0.25]}
    assert race.run(stages, lambda share: known[share], may_wait=False).state == WHOLE
    assert stages.keys() == set(race.shares)


def test_with_two_objectives_one_lost_in_both_is_dropped_and_one_ahead_in_one_is_not() -> None:
    def both(a: float, b: float) -> Scores:
        tasks = {
            name: TaskScore(
                name, "acc", value, None, scored([value] * 200).tasks["t"].items, "1", "d"
            )
            for name, value in (("a", a), ("b", b))
        }
        return Scores("w", "dev", tasks, {})

    race = Race(
        shares=(0.5, 1.0),
        margin=0.1,
        alpha=0.05,
        objectives=(Objective("a", ("a",)), Objective("b", ("b",))),
    )
    race.finish("one", {share: both(1.0, 0.0) for share in race.shares})
    race.finish("other", {share: both(0.0, 1.0) for share in race.shares})
    assert race.values == {"one": (1.0, 0.0), "other": (0.0, 1.0)}
    assert race.look(0.5, both(0.0, 0.0)).state == DROPPED
    assert race.look(0.5, both(1.0, 1.0)).state == WHOLE
    race.finish("best", {share: both(1.0, 1.0) for share in race.shares})
    assert race.values == {"best": (1.0, 1.0)}


def test_one_that_breaks_a_limit_for_sure_is_dropped_and_never_leads() -> None:
    reference = asked([1.0, 0.0] * 200, (0.25, 1.0))
    race = Race(
        shares=(0.25, 1.0),
        margin=0.01,
        alpha=0.05,
        limits=(Limit("t", -0.01, ("t",)),),
        reference=reference,
    )
    verdict, shares = runner(race, [0.0] * 400)
    assert verdict.state == DROPPED and shares == [0.25]
    assert verdict.reason.startswith("search.constraints.t is -0.01: it is -0.500 [")
    assert race.broken({1.0: scored([0.0] * 400)}) and not race.broken(reference)
    assert not race.finish("worse", {1.0: scored([0.0] * 400)})


def test_a_candidate_that_leads_by_the_margin_is_dropped_in_at_most_alpha_of_the_races() -> None:
    """Answers of one difficulty an item, so that merges of a family mostly agree."""
    draw, shares = random.Random(0), (0.25, 0.5, 1.0)
    races, dropped = 400, 0
    for _ in range(races):
        easy = [draw.random() for _ in range(400)]
        leader = [float(draw.random() < e) for e in easy]
        # One item in twenty is drawn anew, with a lead of 1 point.
        better = [
            (1.0 if draw.random() < 0.7 else 0.0) if draw.random() < 0.05 else answer
            for answer in leader
        ]
        race = Race(shares=shares, margin=0.01, alpha=0.05)
        race.finish("leader", asked(leader, shares))
        dropped += runner(race, better)[0].state == DROPPED
    assert dropped <= 0.05 * races


def test_a_candidate_that_is_far_behind_costs_the_first_stage() -> None:
    draw, shares = random.Random(1), (0.125, 0.25, 0.5, 1.0)
    lost = 0
    for _ in range(50):
        leader = [float(draw.random() < 0.7) for _ in range(800)]
        worse = [float(draw.random() < 0.3) for _ in range(800)]
        race = Race(shares=shares, margin=0.01, alpha=0.05)
        race.finish("leader", asked(leader, shares))
        lost += runner(race, worse)[1] == [shares[0]]
    assert lost >= 45


@pytest.mark.parametrize(
    ("values", "leading", "middle"),
    [
        ({"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.8, 0.8), "d": (0.7, 0.8)}, "acb", "c"),
        ({"a": (0.5, 0.5), "b": (0.5, 0.5)}, "a", "a"),
        ({"a": (1.0, 0.0), "b": (0.9, 0.1)}, "ab", "a"),
    ],
)
def test_the_front_and_its_knee(
    values: dict[str, tuple[float, ...]], leading: str, middle: str
) -> None:
    assert front(values) == list(leading)
    assert knee({name: values[name] for name in leading}) == middle
