"""Numbers that are no mean of items, by hand and against chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mergeops.errors import EvaluationError
from mergeops.scores import (
    CORPUS,
    MEAN,
    UNITS,
    UNKNOWN,
    GroupRule,
    ItemResult,
    Scores,
    TaskScore,
    compare,
    estimate,
    pooled_score,
    simultaneous_estimate,
    task_estimate,
)


def task(
    name: str,
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    clusters: Sequence[str] | None = None,
    **facts: Any,
) -> TaskScore:
    weights = [1.0] * len(values) if weights is None else weights
    clusters = [""] * len(values) if clusters is None else clusters
    items = tuple(
        ItemResult(i, f"d{i}", f"p{i}", "t", float(v), c, float(w))
        for i, (v, w, c) in enumerate(zip(values, weights, clusters, strict=True))
    )
    ratio = sum(values) / sum(weights)
    value = facts.pop("value", math.exp(ratio) if facts.get("by_log") else ratio)
    facts = {"metric": "m", "higher_is_better": False, **facts}
    return TaskScore(
        task=name, value=value, stderr=None, items=items, version="1", digest="x", **facts
    )


def perplexity(name: str, nats: Sequence[float], words: Sequence[float], **facts: Any) -> TaskScore:
    return task(name, nats, words, kind=UNITS, by_log=True, metric="word_perplexity", **facts)


def scores(*tasks: TaskScore, **facts: Any) -> Scores:
    return Scores("00", "dev", {t.task: t for t in tasks}, {}, **facts)


# --- a ratio of sums


def test_a_perplexity_is_shown_and_compared_by_nats_a_word() -> None:
    mine = scores(perplexity("wiki", [10.0, 2.0, 0.0], [10, 1, 0]))
    other = scores(perplexity("wiki", [11.0, 3.0, 0.0], [10, 1, 0]))
    assert mine.pooled == pytest.approx(math.exp(12 / 11))
    found = compare(mine, other)
    assert found.difference == pytest.approx(14 / 11 - 12 / 11)
    assert (found.wins, found.losses, found.n) == (2, 0, 3)


def test_long_texts_decide_a_perplexity_as_they_do_in_lm_eval() -> None:
    # By the mean of the texts' own perplexities the second would be the better one.
    long_is_good = scores(perplexity("wiki", [100.0, 9.0], [100, 3]))
    short_is_good = scores(perplexity("wiki", [110.0, 3.0], [100, 3]))
    assert long_is_good.merit > short_is_good.merit
    assert compare(long_is_good, short_is_good).difference > 0


def jackknife(values: Any, weights: Any) -> tuple[float, float, float]:
    """The ratio of the sums, its delete-one jackknife error, and Kish's effective number."""
    n, ratio = len(values), values.sum() / weights.sum()
    without = (values.sum() - values) / (weights.sum() - weights)
    error = math.sqrt((n - 1) / n * ((without - ratio) ** 2).sum())
    return ratio, error, weights.sum() ** 2 / (weights**2).sum()


def test_the_interval_of_a_ratio_is_that_of_its_jackknife() -> None:
    draw = np.random.default_rng(0)
    words = draw.integers(5, 60, size=50)
    mine, other = words * 2.0 + draw.normal(size=50), words * 2.1 + draw.normal(size=50)
    found = compare(
        scores(perplexity("wiki", mine, words)), scores(perplexity("wiki", other, words))
    )
    ratio, error, effective = jackknife(other - mine, words)
    half = stats.t.ppf(0.975, effective - 1) * error
    assert found.difference == pytest.approx(ratio)
    assert (found.low, found.high) == pytest.approx((ratio - half, ratio + half))
    assert found.p_value == pytest.approx(stats.t.sf(ratio / error, effective - 1))
    assert found.test == "paired t"
    z = stats.norm.ppf(0.95) + stats.norm.ppf(0.8)
    assert found.detectable(0.05) == pytest.approx(z * error)


def test_one_text_that_holds_all_words_shows_nothing() -> None:
    mine, other = (scores(perplexity("w", [v, 0.0], [9, 0])) for v in (10.0, 12.0))
    found = compare(mine, other)
    assert (found.low, found.high, found.p_value) == (-math.inf, math.inf, 1.0)
    assert found.detectable(0.05) is None


def test_texts_of_equal_length_are_compared_as_a_mean_of_items() -> None:
    draw = np.random.default_rng(1)
    a, b = draw.normal(size=30), draw.normal(size=30)
    ratio = compare(*(scores(task("t", 7 * v, [7] * 30, kind=UNITS)) for v in (a, b)))
    mean = compare(*(scores(task("t", v)) for v in (a, b)))
    for name in ("difference", "low", "high", "p_value", "wins", "losses"):
        assert getattr(ratio, name) == pytest.approx(getattr(mean, name))


def test_texts_of_one_cluster_count_as_one() -> None:
    values, words = [1.0, 2.0, 4.0, 4.0], [1, 2, 2, 3]
    halves = scores(perplexity("w", values, words, clusters=["a", "a", "b", "b"]))
    whole = scores(perplexity("w", [3.0, 8.0], [3, 5]))
    zero, nothing = perplexity("w", [0.0] * 4, words, clusters=["a", "a", "b", "b"]), [0.0] * 2
    by_item = compare(halves, scores(zero))
    by_cluster = compare(whole, scores(perplexity("w", nothing, [3, 5])))
    assert by_item.test == "clustered t"
    assert (by_item.low, by_item.high) == pytest.approx((by_cluster.low, by_cluster.high))


def test_perplexities_by_one_metric_are_pooled_over_all_their_words() -> None:
    both = scores(perplexity("a", [10.0], [10]), perplexity("b", [6.0, 6.0], [2, 2]))
    assert both.pooled == pytest.approx(math.exp(22 / 14))


def test_the_shown_interval_of_a_perplexity_is_around_the_perplexity() -> None:
    draw = np.random.default_rng(2)
    nats = draw.normal(40, 4, size=80)
    made = scores(perplexity("wiki", nats, [20] * 80))
    found, alone = pooled_score(made), task_estimate(made, "wiki")
    log_mean, half = (
        nats.mean() / 20,
        stats.t.ppf(0.975, 79) * nats.std(ddof=1) / 20 / math.sqrt(80),
    )
    assert (found.low, found.high) == pytest.approx(
        (math.exp(log_mean - half), math.exp(log_mean + half))
    )
    assert alone.interval == pytest.approx(found.interval)
    assert estimate(made).value == made.pooled == made.tasks["wiki"].value


def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says() -> None:
    draw, covered = np.random.default_rng(4), 0
    for _ in range(400):
        words = draw.geometric(0.02, size=60)
        mine, other = (words * 3 + np.sqrt(words) * draw.normal(size=60) for _ in range(2))
        found = compare(scores(perplexity("w", mine, words)), scores(perplexity("w", other, words)))
        covered += found.low <= 0 <= found.high
    # Three standard errors of 400 draws are 3.3 points.
    assert covered / 400 >= 0.95 - 0.033


# --- a number of all items


def f1(pairs: Any) -> float:
    gold, answer = np.array(pairs).T
    right = (gold * answer).sum()
    return float(2 * right / max(1, gold.sum() + answer.sum()))


def corpus(gold: Any, answers: Any, seed: int = 0, draws: int = 500) -> Scores:
    """A model's F1 with draws of the items that are the same for all models."""
    generator = np.random.default_rng(seed)
    pairs = list(zip(gold, answers, strict=True))
    again = [
        [pairs[i] for i in generator.integers(len(pairs), size=len(pairs))] for _ in range(draws)
    ]
    made = task(
        "f", [0.0] * len(pairs), kind=CORPUS, value=f1(pairs), metric="f1", higher_is_better=True,
        replicates=tuple(map(f1, again)),
    )  # fmt: skip
    return scores(made)


def noisy_answers(draw: Any, gold: Any, wrong: float) -> Any:
    return np.where(draw.random(len(gold)) < wrong, 1 - gold, gold)


def test_a_number_of_all_items_is_compared_by_paired_draws() -> None:
    draw = np.random.default_rng(3)
    gold = draw.integers(2, size=300)
    mine, other = (corpus(gold, noisy_answers(draw, gold, w)) for w in (0.1, 0.3))
    found = compare(mine, other)
    assert found.test == "paired bootstrap"
    assert found.difference == pytest.approx(mine.pooled - other.pooled)
    drawn = np.subtract(mine.tasks["f"].replicates, other.tasks["f"].replicates)
    half = stats.t.ppf(0.975, 299) * drawn.std() * math.sqrt(300 / 299)
    assert (found.high - found.low) / 2 == pytest.approx(half)
    assert found.p_value < 1e-6
    assert compare(other, mine).p_value > 0.99


def test_what_both_models_get_right_does_not_widen_the_paired_interval() -> None:
    draw = np.random.default_rng(5)
    gold = draw.integers(2, size=400)
    answers = noisy_answers(draw, gold, 0.2)
    nearly = answers.copy()
    nearly[:6] = 1 - nearly[:6]
    paired = compare(corpus(gold, answers), corpus(gold, nearly))
    alone = pooled_score(corpus(gold, answers))
    assert paired.high - paired.low < 0.4 * (alone.high - alone.low)


def test_models_that_answer_alike_are_not_shown_to_differ() -> None:
    gold = np.array([0, 1] * 20)
    found = compare(corpus(gold, gold), corpus(gold, gold))
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.low < 0 < found.high


@pytest.mark.parametrize("n", [60, 200])
def test_equal_models_are_called_better_no_more_often_than_alpha(n: int) -> None:
    draw, wrong = np.random.default_rng(n), 0
    for seed in range(300):
        gold = draw.integers(2, size=n)
        mine, other = (corpus(gold, noisy_answers(draw, gold, 0.25), seed, 200) for _ in range(2))
        wrong += compare(mine, other).p_value <= 0.05
    # Three standard errors of 300 draws are 3.8 points.
    assert wrong / 300 <= 0.05 + 0.038


def test_the_best_of_many_equals_is_not_called_better_too_often() -> None:
    draw, wrong = np.random.default_rng(9), 0
    for seed in range(100):
        gold = draw.integers(2, size=150)
        many = {str(k): corpus(gold, noisy_answers(draw, gold, 0.25), seed, 200) for k in range(6)}
        reference = corpus(gold, noisy_answers(draw, gold, 0.25), seed, 200)
        found = simultaneous_estimate(many, reference)
        wrong += min(one.p_value for one in found.values()) <= 0.05
    assert wrong / 100 <= 0.05 + 0.065


def test_one_candidate_of_a_corpus_metric_gets_the_interval_of_a_single_comparison() -> None:
    draw = np.random.default_rng(3)
    gold = draw.integers(2, size=300)
    mine, other = (corpus(gold, noisy_answers(draw, gold, w)) for w in (0.1, 0.15))
    one = simultaneous_estimate({"a": mine}, other)["a"]
    alone = compare(mine, other)
    assert one.difference == pytest.approx(alone.difference)
    assert (one.low, one.high) == pytest.approx((alone.low, alone.high), abs=0.01)


# --- groups


def test_a_group_that_counts_its_tasks_once_has_the_mean_of_their_scores() -> None:
    rule = {"both": GroupRule(("a", "b"), by_size=False)}
    tasks = [task("a", [1.0]), task("b", [0.0, 0.0, 1.0, 0.0])]
    assert scores(*tasks, groups=rule).pooled == pytest.approx((1 + 0.25) / 2)
    assert scores(*tasks).pooled == pytest.approx(2 / 5)


def test_a_group_by_size_is_the_mean_over_its_items() -> None:
    rule = {"both": GroupRule(("a", "b"), by_size=True)}
    made = scores(task("a", [1.0]), task("b", [0.0, 0.0, 1.0, 0.0]), groups=rule)
    assert made.pooled == pytest.approx(2 / 5)


def test_a_group_of_perplexities_is_lm_evals_mean_of_perplexities() -> None:
    tasks = [perplexity("a", [10.0, 4.0], [5, 5]), perplexity("b", [3.0], [3])]
    by_size = scores(*tasks, groups={"g": GroupRule(("a", "b"), by_size=True)})
    assert by_size.pooled == pytest.approx((2 * math.exp(1.4) + math.exp(1.0)) / 3)
    once = scores(*tasks, groups={"g": GroupRule(("a", "b"), by_size=False)})
    assert once.pooled == pytest.approx((math.exp(1.4) + math.exp(1.0)) / 2)


def test_the_difference_of_groups_has_the_interval_of_its_jackknife() -> None:
    draw = np.random.default_rng(6)
    a, b = draw.normal(size=40), draw.normal(size=10)
    rule = {"g": GroupRule(("a", "b"), by_size=False)}
    mine = scores(task("a", a), task("b", b), groups=rule)
    other = scores(task("a", np.zeros(40)), task("b", np.zeros(10)), groups=rule)
    found = compare(mine, other)
    centre = (a.mean() + b.mean()) / 2
    assert found.difference == pytest.approx(-centre)
    # An item of a weighs 1 / 80, one of b 1 / 20.
    weights = np.concatenate([np.full(40, 1 / 80), np.full(10, 1 / 20)])
    _, error, effective = jackknife(np.concatenate([a, b]) * weights, weights)
    half = stats.t.ppf(0.975, effective - 1) * error
    assert (found.high - found.low) / 2 == pytest.approx(half)


def test_a_group_beside_a_task_counts_with_all_its_items() -> None:
    rule = {"g": GroupRule(("a", "b"), by_size=False)}
    tasks = [task("a", [1.0]), task("b", [0.0, 0.0, 0.0]), task("c", [1.0, 0.0])]
    assert scores(*tasks, groups=rule).pooled == pytest.approx((4 * 0.5 + 2 * 0.5) / 6)


# --- only what is alike


def test_scores_of_two_versions_of_lm_eval_are_not_compared() -> None:
    old, new = (
        Scores("00", "dev", {"a": task("a", [1.0, 0.0])}, {"lm_eval": version})
        for version in ("0.4.12", "0.4.13")
    )
    message = (
        "the candidate was scored by lm-eval 0.4.13 and the reference by lm-eval 0.4.12: .*again"
    )
    with pytest.raises(EvaluationError, match=message):
        compare(new, old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "2"}, "task version: 1 and 2"),
        ({"asked": {"few-shot examples": "5"}}, "few-shot examples: 0 and 5"),
        ({"kind": UNITS}, "kind of score: mean and units"),
    ],
)
def test_scores_that_were_not_asked_alike_are_not_compared(
    change: dict[str, Any], message: str
) -> None:
    made = task("a", [1.0, 0.0], asked={"few-shot examples": "0"})
    other = TaskScore(**{**vars(made), **change})
    with pytest.raises(EvaluationError, match=rf"task a: .* not scored alike \({message}\); run"):
        compare(scores(made), scores(other))


def test_items_that_were_drawn_otherwise_are_not_compared() -> None:
    gold = np.array([0, 1] * 20)
    with pytest.raises(EvaluationError, match="task f: the items were not drawn alike for both"):
        compare(corpus(gold, gold), corpus(gold, gold, draws=400))


def test_a_score_of_an_older_mergeops_is_no_mean_of_items() -> None:
    old = scores(task("wiki", [9.0, 1.0], metric="word_perplexity", value=3.0, kind=UNKNOWN))
    with pytest.raises(
        EvaluationError, match="task wiki: .* older mergeops.* scored the model again"
    ):
        _ = pooled_score(old)


def test_metrics_of_one_direction_may_be_pooled_whatever_they_are() -> None:
    made = scores(perplexity("a", [2.0, 2.0], [2, 2]), task("b", [4.0], kind=MEAN))
    assert made.pooled == pytest.approx((2 * 1.0 + 4.0) / 3)


def test_what_is_written_is_read_again() -> None:
    rule = {"g": GroupRule(("a",), by_size=False)}
    made = scores(perplexity("a", [2.0, 2.0], [2, 2]), groups=rule)
    assert Scores.from_dict(made.to_dict()) == made
