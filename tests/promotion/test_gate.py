"""The gate: what promotes, what refuses, and what is merely not shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergeops.errors import ConfigError, EvaluationError
from mergeops.promotion.gate import COLUMNS, GateCheck, Verdict, check_tasks, judge
from mergeops.recipe.composition import compose
from mergeops.recipe.settings import PromoteSpec
from mergeops.schema import build
from mergeops.scores import ItemResult, Scores, TaskScore
from mergeops.scores.proportions import mcnemar_p, tango_interval

SPEC = PromoteSpec(alpha=0.05, margin=0.03, confidence=0.95)
SPREAD = tuple[int, int, int]
"""Items won, lost and tied by the candidate."""


def scores(name: str, part: str = "confirm", **tasks: list[float]) -> Scores:
    made = {}
    for task, values in tasks.items():
        items = tuple(ItemResult(i, f"d{i}", f"p{i}", "t", v) for i, v in enumerate(values))
        made[task] = TaskScore(task, "acc", sum(values) / len(values), None, items, "1", "x")
    return Scores(name, part, made, {})


def contest(**tasks: SPREAD) -> tuple[Scores, Scores]:
    """A candidate and a reference with so many items won, lost and tied."""
    mine = {t: [1.0] * w + [0.0] * lost + [1.0] * tied for t, (w, lost, tied) in tasks.items()}
    other = {t: [0.0] * w + [1.0] * lost + [1.0] * tied for t, (w, lost, tied) in tasks.items()}
    return scores("aa", **mine), scores("bb", **other)


def verdict(spec: PromoteSpec = SPEC, **tasks: SPREAD) -> Verdict:
    candidate, reference = contest(**tasks)
    return judge(candidate, {"best_parent:math": reference}, spec)


def only(found: Verdict, kind: str, task: str | None = None) -> GateCheck:
    [check] = [c for c in found.checks if c.kind == kind and (task is None or c.tasks == (task,))]
    return check


def test_better_on_all_items_and_worse_nowhere_promotes() -> None:
    found = verdict(a=(30, 5, 165), b=(20, 4, 176))
    assert found.promotes
    assert found.decision == "promote"
    assert found.reasons == ()
    assert [c.outcome for c in found.checks] == ["pass"] * 3


def test_the_numbers_of_a_check_are_those_of_the_paired_test() -> None:
    better = only(verdict(a=(30, 5, 165), b=(20, 4, 176)), "better")
    assert (better.n, better.wins, better.losses) == (400, 50, 9)
    assert better.difference == pytest.approx(41 / 400)
    assert better.p_value == mcnemar_p(50, 9)
    assert better.threshold == 0.05
    # The interval that belongs to a one-sided test at 5 % is the two-sided one of 90 %.
    assert (better.low, better.high) == tango_interval(50, 9, 400, 0.9)
    not_worse = only(verdict(a=(30, 5, 165), b=(20, 4, 176)), "not worse", "b")
    assert (not_worse.n, not_worse.wins, not_worse.losses) == (200, 20, 4)
    assert not_worse.low == tango_interval(20, 4, 200, 0.9)[0]
    assert not_worse.threshold == -0.03
    assert not_worse.p_value is None


def test_a_gain_within_chance_is_inconclusive_and_says_what_would_have_shown() -> None:
    found = verdict(a=(12, 8, 380))
    assert found.decision == "inconclusive"
    assert not found.promotes
    [reason] = found.reasons
    low, high = tango_interval(12, 8, 400, 0.9)
    interval = f"[{low:+.3f}, {high:+.3f}]"
    assert f"not shown to be better than best_parent:math: +0.010 {interval} on 400" in reason
    assert "12 won and 8 lost" in reason
    assert "these items show differences from about 0.028" in reason


def test_a_loss_refuses() -> None:
    found = verdict(a=(8, 12, 380))
    assert found.decision == "refuse"
    assert found.reasons[0].startswith("worse than best_parent:math: -0.010 [-0.0")
    assert "on 400 items" in found.reasons[0]


def test_a_gain_over_all_does_not_excuse_a_loss_on_one_task() -> None:
    found = verdict(a=(60, 0, 140), b=(2, 14, 184))
    assert only(found, "better").outcome == "pass"
    assert only(found, "not worse", "b").outcome == "fail"
    assert found.decision == "refuse"
    assert found.reasons[0].startswith("loses more than 0.03 against best_parent:math on b: -0.060")


def test_a_loss_that_few_items_cannot_rule_out_is_inconclusive() -> None:
    found = verdict(a=(60, 0, 140), b=(3, 3, 30))
    check = only(found, "not worse", "b")
    assert (check.outcome, check.difference) == ("inconclusive", 0.0)
    assert check.low <= -0.03
    assert found.decision == "inconclusive"
    assert "a loss of over 0.03 against best_parent:math on b is not ruled out" in found.reasons[0]


def test_what_speaks_against_comes_before_what_is_unproved() -> None:
    found = verdict(a=(40, 0, 160), b=(3, 3, 30), c=(0, 20, 180))
    assert found.decision == "refuse"
    assert [r.split(" ")[0] for r in found.reasons] == ["loses", "a"]


def test_the_primary_tasks_alone_must_be_better() -> None:
    spec = replace(SPEC, primary=("a",))
    found = verdict(spec, a=(30, 5, 165), b=(10, 10, 980))
    assert only(found, "better").n == 200
    assert found.promotes


def test_a_wider_margin_lets_a_small_loss_pass() -> None:
    tasks = {"a": (60, 0, 140), "b": (2, 6, 192)}
    assert verdict(SPEC, **tasks).decision == "inconclusive"
    assert verdict(replace(SPEC, margin=0.08), **tasks).promotes


def test_a_smaller_alpha_asks_for_more() -> None:
    tasks = {"a": (16, 6, 478)}
    assert verdict(SPEC, **tasks).promotes
    assert verdict(replace(SPEC, alpha=0.01), **tasks).decision == "inconclusive"


def test_every_reference_must_be_beaten() -> None:
    candidate, parent = contest(a=(30, 5, 165))
    strong = scores("cc", a=[1.0] * 200)
    found = judge(candidate, {"best_parent:math": parent, "champion:3": strong}, SPEC)
    assert found.decision == "refuse"
    assert [c.outcome for c in found.checks if c.reference == "best_parent:math"] == ["pass"] * 2
    assert all("champion:3" in reason for reason in found.reasons)


def test_the_champion_does_not_replace_itself() -> None:
    candidate, parent = contest(a=(30, 5, 165))
    found = judge(candidate, {"best_parent:math": parent, "champion:3": candidate}, SPEC)
    assert found.decision == "refuse"
    assert found.reasons == ("the candidate is champion:3: the same weights",)


def test_nothing_to_compare_with_is_inconclusive() -> None:
    candidate, _ = contest(a=(30, 5, 165))
    found = judge(candidate, {}, replace(SPEC, against=("champion",)))
    assert found.decision == "inconclusive"
    assert found.reasons[0].startswith("there is nothing to compare with: promote.against asks for")


def test_other_numbers_than_zero_and_one_are_judged_by_a_t_test() -> None:
    generator = np.random.default_rng(0)
    other = generator.normal(size=200)
    mine = other + 0.2 + 0.3 * generator.normal(size=200)
    found = judge(scores("a", a=mine.tolist()), {"base": scores("b", a=other.tolist())}, SPEC)
    assert found.promotes


@pytest.mark.parametrize("seen", ["candidate", "reference"])
def test_scores_of_the_dev_part_are_refused(seen: str) -> None:
    dev, confirm = scores("a", "dev", a=[1.0]), scores("b", a=[1.0])
    candidate, reference = (dev, confirm) if seen == "candidate" else (confirm, dev)
    who = "the candidate" if seen == "candidate" else "champion:1"
    message = f"takes scores of the confirm part; those of {who} are of the dev part"
    with pytest.raises(EvaluationError, match=message):
        judge(candidate, {"champion:1": reference}, SPEC)


def test_a_primary_task_without_scores_is_named() -> None:
    candidate, reference = contest(a=(1, 0, 1))
    with pytest.raises(
        EvaluationError, match="promote.primary names task 'b', which has no scores"
    ):
        judge(candidate, {"base": reference}, replace(SPEC, primary=("b",)))


def test_a_reference_that_was_not_scored_on_a_task_is_an_error() -> None:
    candidate, _ = contest(a=(1, 0, 1), b=(1, 0, 1))
    _, reference = contest(a=(1, 0, 1))
    with pytest.raises(EvaluationError, match="task 'b' is not among the scores of the reference"):
        judge(candidate, {"base": reference}, SPEC)


def test_a_verdict_is_json_and_a_table() -> None:
    found = verdict(a=(30, 5, 165), b=(2, 14, 184))
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["decision"] == "refuse"
    assert plain["reasons"] == list(found.reasons)
    assert plain["checks"][0]["tasks"] == ["a", "b"]
    assert plain["checks"][0]["p_value"] == found.checks[0].p_value
    rows = found.rows()
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert rows[0][:5] == ("best_parent:math", "better", "a, b", "400", "+0.033")
    assert rows[0][6] == "p = 0.046, allowed 0.05"
    assert rows[2][6] == "low > -0.030"
    assert rows[2][-1] == "fail"


def test_a_verdict_over_one_item_has_no_infinite_number_in_its_json() -> None:
    found = judge(scores("a", a=[0.7]), {"base": scores("b", a=[0.5])}, SPEC)
    plain = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(plain)["checks"][0]["low"] is None
    assert found.decision == "inconclusive"


def test_equal_models_are_promoted_no_more_often_than_alpha() -> None:
    spec = replace(SPEC, margin=1.0)
    draws = np.random.default_rng(4).multinomial(400, [0.06, 0.06, 0.88], size=400)
    promoted = [verdict(spec, a=tuple(map(int, draw))).promotes for draw in draws]
    # Three standard errors of 400 draws are 3.3 points.
    assert np.mean(promoted) <= 0.05 + 0.033


# --- the level of a use, tasks to retain, floors and bits per byte


def test_a_later_use_of_the_confirm_part_asks_for_more() -> None:
    candidate, reference = contest(a=(16, 6, 478))
    against = {"base": reference}
    first = judge(candidate, against, SPEC, level=0.05)
    third = judge(candidate, against, SPEC, level=0.05 / 12)
    assert (first.decision, third.decision) == ("promote", "inconclusive")
    assert third.to_dict()["level"] == pytest.approx(0.05 / 12)
    assert only(third, "better").rule == "p <= 0.00417"


def test_a_reason_shows_p_as_exactly_as_the_level_it_misses() -> None:
    candidate, reference = contest(a=(10, 0, 490))
    [reason] = judge(candidate, {"base": reference}, SPEC, level=0.05 / 56).reasons
    # Ten of ten by chance: 2 ** -10.
    assert "10 won and 0 lost, p 0.000977 > alpha 0.000893" in reason


def test_only_retained_tasks_may_not_lose() -> None:
    tasks = {"a": (60, 0, 140), "b": (0, 20, 180)}
    assert verdict(replace(SPEC, primary=("a",), retain=("b",)), **tasks).decision == "refuse"
    assert verdict(replace(SPEC, primary=("a",), retain=("a",)), **tasks).promotes


def test_a_task_may_have_a_margin_of_its_own() -> None:
    tasks = {"a": (60, 0, 140), "b": (2, 6, 192)}
    found = verdict(replace(SPEC, margins={"b": 0.08}), **tasks)
    assert found.promotes
    assert only(found, "not worse", "b").rule == "low > -0.080"
    assert only(found, "not worse", "a").rule == "low > -0.030"


@pytest.mark.parametrize(
    ("right", "outcome", "decision"),
    [(150, "pass", "promote"), (122, "inconclusive", "inconclusive"), (100, "fail", "refuse")],
)
def test_a_floor_holds_with_confidence_whatever_the_reference_does(
    right: int, outcome: str, decision: str
) -> None:
    candidate = scores("aa", a=[1.0] * right + [0.0] * (200 - right))
    reference = scores("bb", a=[0.0] * 200)
    found = judge(candidate, {"base": reference}, replace(SPEC, floors={"a": 0.6}))
    check = only(found, "floor")
    assert (check.outcome, found.decision, check.reference) == (outcome, decision, "-")
    assert (check.difference, check.threshold, check.test) == (right / 200, 0.6, "Wilson")
    # Wilson's one-sided bound of 95 %, from the formula.
    z, p, n = 1.6448536, right / 200, 200
    low = (p + z * z / 2 / n - z * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n)) / (1 + z * z / n)
    assert check.low == pytest.approx(low, abs=1e-6)


def test_a_floor_that_fails_refuses_also_with_nothing_to_compare() -> None:
    candidate = scores("aa", a=[0.0] * 200)
    found = judge(candidate, {}, replace(SPEC, floors={"a": 0.6}))
    assert found.decision == "refuse" and len(found.reasons) == 2
    assert found.reasons[0] == only(found, "floor").sentence
    assert found.reasons[1].startswith("there is nothing to compare with")
    passing = judge(scores("aa", a=[1.0] * 200), {}, replace(SPEC, floors={"a": 0.6}))
    assert passing.decision == "inconclusive" and len(passing.reasons) == 1


def perplexity(name: str, values: list[float], **tasks: list[float]) -> Scores:
    found = scores(name, **tasks)
    items = tuple(ItemResult(i, f"d{i}", f"p{i}", "t", v) for i, v in enumerate(values))
    mean = sum(values) / len(values)
    wiki = TaskScore("wiki", "bits_per_byte", mean, None, items, "1", "x", False)
    return replace(found, tasks={**found.tasks, "wiki": wiki})


@pytest.mark.parametrize(
    ("rise", "spread", "outcome", "decision"),
    [
        (0.0, 0.01, "pass", "promote"),
        (0.01, 0.5, "inconclusive", "inconclusive"),
        (0.1, 0.01, "fail", "refuse"),
    ],
)
def test_bits_per_byte_may_not_rise(
    rise: float, spread: float, outcome: str, decision: str
) -> None:
    draw = np.random.default_rng(3)
    before = draw.normal(1.0, 0.3, size=60)
    change = spread * draw.normal(size=60)
    after = before + rise + change - change.mean()
    candidate = perplexity("aa", after.tolist(), a=[1.0] * 60)
    reference = perplexity("bb", before.tolist(), a=[0.0] * 30 + [1.0] * 30)
    spec = replace(SPEC, bits_per_byte={"wiki": 0.02})
    found = judge(candidate, {"base": reference}, spec)
    check = only(found, "bits per byte")
    assert (check.outcome, found.decision) == (outcome, decision)
    assert check.difference == pytest.approx(rise)
    assert check.low <= check.difference <= check.high
    # The guard is no primary task, and has no margin in score units.
    assert only(found, "better").tasks == ("a",)
    assert [c.tasks for c in found.checks if c.kind == "not worse"] == [("a",)]


def test_a_guard_scored_by_another_metric_is_refused() -> None:
    candidate, reference = contest(a=(9, 0, 20), b=(1, 1, 20))
    with pytest.raises(
        EvaluationError, match="bits_per_byte names task b, whose metric is acc; name tasks of"
    ):
        judge(candidate, {"base": reference}, replace(SPEC, bits_per_byte={"b": 0.1}))


@pytest.mark.parametrize(
    "named", [{"retain": ("z",)}, {"margins": {"z": 0.1}}, {"floors": {"z": 0.1}}]
)
def test_a_gate_that_names_an_unknown_task_is_refused(named: dict[str, Any]) -> None:
    key = next(iter(named))
    with pytest.raises(EvaluationError, match=f"promote.{key} names task 'z', which has no scores"):
        check_tasks(replace(SPEC, **named), ("a", "b"))


def test_a_verdict_is_markdown() -> None:
    lines = verdict(a=(8, 12, 380)).markdown().splitlines()
    assert lines[0] == "**refuse**"
    assert lines[2].startswith("| reference | must be | tasks |")
    assert lines[4].startswith("| best_parent:math | better | a | 400 | -0.010 |")
    assert lines[-1].startswith("- ")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"margins": {"a": -1}}, "promote.margins.a is -1.0; allowed: from 0 to 1"),
        ({"bits_per_byte": {"w": -0.1}}, "promote.bits_per_byte.w is -0.1; allowed: from 0 to 8"),
        ({"hooks": {"webhook": "ftp://x"}}, "hooks.webhook is 'ftp://x'; write an http"),
        ({"hooks": {"attempts": 0}}, "promote.hooks.attempts is 0; allowed: from 1 to 20"),
        ({"floor": {}}, "unknown key promote.floor; did you mean 'floors'"),
    ],
)
def test_settings_out_of_range_are_named(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(PromoteSpec, raw, "promote.")


GATES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf/promote").glob("*.yaml"))


@pytest.mark.parametrize("name", GATES)
def test_every_packaged_gate_composes_and_single_values_can_be_changed(name: str) -> None:
    found = compose([f"promote={name}", "promote.floors.chat=0.5", "promote.alpha=0.02"]).promote
    assert (found.floors, found.alpha) == ({"chat": 0.5}, 0.02)
    assert found.approval == (name == "approval")
    assert found.bits_per_byte == ({"wikitext": 0.02} if name == "guarded" else {})
