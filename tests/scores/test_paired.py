"""Paired statistics, against formulas of their own and against chance itself."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats

from mergeops.errors import EvaluationError
from mergeops.scores import ItemResult, Scores, TaskScore
from mergeops.scores.paired import compare, compare_pairs
from mergeops.scores.pairing import pair
from mergeops.scores.proportions import detectable_share, mcnemar_p, tango_interval

Z95 = 1.959963984540054


def task(
    values: list[float],
    name: str = "a",
    *,
    metric: str = "acc",
    higher: bool = True,
    change: Callable[[int], dict[str, object]] = lambda i: {},
) -> TaskScore:
    items = tuple(
        ItemResult(
            **{
                "doc_id": i,
                "doc_hash": f"d{i}",
                "prompt_hash": f"p{i}",
                "target_hash": "t",
                "value": v,
                **change(i),
            }
        )
        for i, v in enumerate(values)
    )
    return TaskScore(name, metric, sum(values) / len(values), None, items, "1", "x", higher)


def scores(*tasks: TaskScore, part: str = "confirm") -> Scores:
    return Scores("00", part, {t.task: t for t in tasks}, {})


def outcomes(wins: int, losses: int, ties: int) -> tuple[list[float], list[float]]:
    return [1.0] * wins + [0.0] * losses + [1.0] * ties, [0.0] * wins + [1.0] * losses + [
        1.0
    ] * ties


# --- the exact test


def test_mcnemar_is_the_chance_of_at_least_so_many_wins_in_fair_tosses() -> None:
    # 7 wins, 1 loss: (8 + 1) of 2**8 outcomes
    assert mcnemar_p(7, 1) == pytest.approx(9 / 256)
    assert mcnemar_p(0, 3) == pytest.approx(1.0)


def test_models_that_never_differ_show_nothing() -> None:
    assert mcnemar_p(0, 0) == 1.0


def test_items_of_zero_and_one_get_the_exact_test_and_others_a_t_test() -> None:
    assert compare(scores(task([1, 0, 1])), scores(task([0, 0, 1]))).test == "exact McNemar"
    assert compare(scores(task([1, 0.5, 1])), scores(task([0, 0, 1]))).test == "paired t"


def test_wins_losses_and_the_difference_are_counted_by_item() -> None:
    mine, other = outcomes(wins=12, losses=2, ties=36)
    found = compare(scores(task(mine)), scores(task(other)))
    assert (found.n, found.wins, found.losses) == (50, 12, 2)
    assert found.difference == pytest.approx(0.2)
    assert found.p_value == pytest.approx(sum(math.comb(14, k) for k in (12, 13, 14)) / 2**14)


def test_items_of_several_tasks_are_pooled() -> None:
    mine = scores(task([1, 1, 0], "a"), task([1, 0], "b"))
    other = scores(task([0, 1, 0], "a"), task([0, 1], "b"))
    found = compare(mine, other)
    assert (found.n, found.wins, found.losses) == (5, 2, 1)
    assert compare(mine, other, ["b"]).n == 2


# --- the interval


def profile_score(wins: int, losses: int, n: int, delta: float) -> float:
    """Tango's statistic with its nuisance parameter found by maximising the likelihood."""

    def minus_log_likelihood(q: float) -> float:
        cells = ((wins, q + delta), (losses, q), (n - wins - losses, 1 - 2 * q - delta))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    q = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    return float((wins - losses - n * delta) / math.sqrt(n * (2 * q + delta - delta**2)))


@pytest.mark.parametrize(
    ("wins", "losses", "n"), [(12, 2, 50), (1, 0, 30), (5, 5, 40), (30, 45, 400), (3, 9, 12)]
)
def test_the_interval_holds_the_differences_that_the_score_test_does_not_reject(
    wins: int, losses: int, n: int
) -> None:
    low, high = tango_interval(wins, losses, n, 0.95)
    assert profile_score(wins, losses, n, low) == pytest.approx(Z95, abs=2e-3)
    assert profile_score(wins, losses, n, high) == pytest.approx(-Z95, abs=2e-3)


@pytest.mark.parametrize("n", [1, 20, 500])
def test_without_disagreement_the_interval_is_wilsons_for_no_events(n: int) -> None:
    bound = Z95**2 / (n + Z95**2)
    assert tango_interval(0, 0, n, 0.95) == pytest.approx((-bound, bound), abs=1e-9)


def test_the_interval_is_symmetric_and_stays_within_one() -> None:
    low, high = tango_interval(9, 4, 60, 0.9)
    assert tango_interval(4, 9, 60, 0.9) == pytest.approx((-high, -low))
    assert tango_interval(7, 0, 7, 0.99)[1] == pytest.approx(1.0)
    assert tango_interval(0, 7, 7, 0.99)[0] >= -1.0


def test_at_zero_the_interval_agrees_with_mcnemars_statistic() -> None:
    # (b - c)^2 / (b + c) = 3.84 exactly when the 95 % interval touches zero
    wins, losses = 20, 8
    z = (wins - losses) / math.sqrt(wins + losses)
    confidence = 2 * float(stats.norm.cdf(z)) - 1
    assert tango_interval(wins, losses, 100, confidence)[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("n", "p_win", "p_lose"), [(40, 0.1, 0.05), (200, 0.08, 0.06)])
def test_the_interval_covers_the_truth_as_often_as_it_says(
    n: int, p_win: float, p_lose: float
) -> None:
    draws = np.random.default_rng(0).multinomial(n, [p_win, p_lose, 1 - p_win - p_lose], size=2000)
    known: dict[tuple[int, int], bool] = {}
    for wins, losses, _ in draws.tolist():
        if (wins, losses) not in known:
            low, high = tango_interval(wins, losses, n, 0.95)
            known[wins, losses] = low <= p_win - p_lose <= high
    covered = np.mean([known[wins, losses] for wins, losses, _ in draws.tolist()])
    # Counts are whole numbers, so 95 % is not met exactly; the draws' own error is 0.5 points.
    assert 0.935 <= covered <= 0.975


def test_equal_models_are_called_better_no_more_often_than_alpha() -> None:
    draws = np.random.default_rng(1).multinomial(200, [0.06, 0.06, 0.88], size=3000)
    known: dict[tuple[int, int], bool] = {}
    for wins, losses, _ in draws.tolist():
        known.setdefault((wins, losses), mcnemar_p(wins, losses) <= 0.05)
    rate = np.mean([known[wins, losses] for wins, losses, _ in draws.tolist()])
    # Exact, so below 5 %; three standard errors of 3000 draws are 1.2 points.
    assert 0.01 <= rate <= 0.05 + 0.012


# --- other numbers than 0 and 1


def test_the_t_test_is_students() -> None:
    generator = random.Random(3)
    mine = [generator.gauss(0.1, 1) for _ in range(30)]
    other = [generator.gauss(0, 1) for _ in range(30)]
    found = compare(scores(task(mine)), scores(task(other)), confidence=0.9)
    expected = stats.ttest_rel(mine, other, alternative="greater")
    interval = stats.ttest_rel(mine, other).confidence_interval(0.9)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.confidence == 0.9


def test_where_lower_is_better_a_smaller_value_wins() -> None:
    mine = scores(task([1.0, 1.2, 0.9], metric="bits_per_byte", higher=False))
    other = scores(task([1.5, 1.6, 1.5], metric="bits_per_byte", higher=False))
    found = compare(mine, other)
    assert (found.wins, found.losses) == (3, 0)
    assert found.difference == pytest.approx(0.5)
    assert found.p_value < 0.05


def test_an_error_rate_is_compared_exactly_as_the_rate_of_right_answers() -> None:
    mine, other = outcomes(wins=5, losses=1, ties=4)
    right = compare(scores(task(mine)), scores(task(other)))
    wrong = compare(
        scores(task([1 - v for v in mine], higher=False)),
        scores(task([1 - v for v in other], higher=False)),
    )
    assert wrong == right


def test_items_that_all_show_the_same_difference_get_a_sign_test_and_a_bound_for_no_events() -> (
    None
):
    # No event in 3 units at 95 % two-sided: q = 1 - 0.025 ** (1 / 3).
    q = 1 - 0.025 ** (1 / 3)
    same = compare_pairs([(0.5, 0.5)] * 3)
    assert (same.difference, same.p_value, same.test) == (0, 1.0, "exact sign")
    assert (same.low, same.high) == pytest.approx((-q, q))
    assert same.detectable(0.05) is None
    always = compare_pairs([(0.7, 0.5)] * 3)
    assert always.p_value == 0.125
    assert (always.low, always.high) == pytest.approx((0.2 - 1.2 * q, 0.2 + 0.8 * q))
    one = compare_pairs([(0.7, 0.5)])
    assert (one.low, one.high, one.p_value) == (-math.inf, math.inf, 1.0)
    assert one.detectable(0.05) is None


def test_clusters_that_all_show_the_same_difference_are_not_certain() -> None:
    found = compare_pairs([(1.0, 0.0)] * 9, clusters=list("aaabbbccc"))
    assert (found.test, found.p_value, found.units) == ("exact sign", 0.125, 3)
    q = 1 - 0.025 ** (1 / 3)
    assert (found.low, found.high) == pytest.approx((1 - 2 * q, 1.0))


# --- what could have been found


def test_the_detectable_difference_is_found_with_the_power_it_promises() -> None:
    n, discordant, alpha, power = 1000, 0.12, 0.05, 0.8
    delta = detectable_share(n, discordant, alpha, power)
    assert delta is not None
    p_win, p_lose = (discordant + delta) / 2, (discordant - delta) / 2
    draws = np.random.default_rng(2).multinomial(n, [p_win, p_lose, 1 - discordant], size=1500)
    found = np.mean([mcnemar_p(wins, losses) <= alpha for wins, losses, _ in draws.tolist()])
    # The exact test gives away a little of the normal approximation's power.
    assert found == pytest.approx(power, abs=0.05)


def test_the_detectable_difference_by_hand() -> None:
    z = 1.6448536269514722 + 0.8416212335729143
    assert detectable_share(100, 0.2, 0.05) == pytest.approx(z * math.sqrt(0.2 / (100 + z * z)))
    assert detectable_share(100, 0.0, 0.05) is None
    assert detectable_share(0, 0.5, 0.05) is None
    mine, other = outcomes(wins=12, losses=8, ties=80)
    found = compare(scores(task(mine)), scores(task(other)))
    assert found.detectable(0.05) == detectable_share(100, 0.2, 0.05)
    differences = [0.1, 0.3, -0.2, 0.4]
    by_t = compare_pairs([(d, 0.0) for d in differences])
    assert by_t.detectable(0.05) == pytest.approx(z * np.std(differences, ddof=1) / 2)


# --- what may not be paired


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ("doc_id", "item"),
        ("doc_hash", "item"),
        ("prompt_hash", "prompt"),
        ("target_hash", "target"),
    ],
)
def test_items_that_are_not_provably_the_same_are_refused(field: str, what: str) -> None:
    other: object = 9 if field == "doc_id" else "other"
    changed = scores(task([1, 0, 1], change=lambda i: {field: other} if i == 1 else {}))
    with pytest.raises(EvaluationError, match=rf"task a, item \d: the {what} is not the same"):
        pair(scores(task([1, 0, 1])), changed)


def test_another_number_of_items_is_refused() -> None:
    with pytest.raises(EvaluationError, match="task a: 3 items cannot be paired with 2"):
        pair(scores(task([1, 0, 1])), scores(task([1, 0])))


def test_another_metric_is_refused() -> None:
    with pytest.raises(EvaluationError, match="metric acc cannot be compared with acc_norm"):
        pair(scores(task([1])), scores(task([1], metric="acc_norm")))


def test_another_part_is_refused() -> None:
    with pytest.raises(EvaluationError, match="scores of the confirm part cannot be compared with"):
        pair(scores(task([1])), scores(task([1]), part="dev"))


def test_a_task_that_one_of_them_does_not_have_is_refused() -> None:
    with pytest.raises(
        EvaluationError, match="task 'b' is not among the scores of the reference: a"
    ):
        pair(scores(task([1]), task([1], "b")), scores(task([1])))
    with pytest.raises(EvaluationError, match="task 'c' is not among the scores of the candidate"):
        pair(scores(task([1])), scores(task([1])), ["c"])


def test_tasks_of_opposite_direction_are_not_pooled() -> None:
    both = scores(task([1.0]), task([1.0], "b", metric="bits_per_byte", higher=False))
    message = (
        r"a \(acc, higher is better\) and b \(bits_per_byte, lower is better\) cannot be pooled"
    )
    with pytest.raises(EvaluationError, match=message):
        compare(both, both)


def test_no_items_are_refused() -> None:
    with pytest.raises(EvaluationError, match="no items to compare on"):
        compare_pairs([])


# --- clusters


def in_clusters(labels: str) -> Callable[[int], dict[str, object]]:
    return lambda i: {"cluster": labels[i].strip()}


def test_items_of_one_cluster_count_as_one() -> None:
    # Differences 1, 1 | 0, 0 | 0 | 0 with a mean of 1/3: residual sums 4/3, -2/3, -1/3, -1/3.
    mine = scores(task([1, 1, 1, 0, 1, 0], change=in_clusters("aabbcd")))
    other = scores(task([0, 0, 1, 0, 1, 0], change=in_clusters("aabbcd")))
    found = compare(mine, other, confidence=0.9)
    stderr = math.sqrt(4 / 3 * (16 + 4 + 1 + 1) / 9) / 6
    half = stats.t.ppf(0.95, 3) * stderr
    assert (found.test, found.n, found.units) == ("clustered t", 6, 4)
    assert (found.low, found.high) == pytest.approx((1 / 3 - half, 1 / 3 + half))
    assert found.p_value == pytest.approx(stats.t.sf(1 / 3 / stderr, 3))


def test_copies_of_each_item_in_a_cluster_leave_the_interval_as_it_was() -> None:
    draw = np.random.default_rng(2)
    values = draw.normal(size=40)
    single = compare_pairs([(v, 0.0) for v in values])
    labels = [f"{i // 5}" for i in range(200)]
    copies = compare_pairs([(v, 0.0) for v in np.repeat(values, 5)], clusters=labels)
    assert (copies.low, copies.high) == pytest.approx((single.low, single.high))
    assert copies.p_value == pytest.approx(single.p_value)


def test_clusters_of_one_item_keep_the_exact_test() -> None:
    mine, other = outcomes(5, 1, 4)
    alone = in_clusters("abcdefg   ")
    found = compare(scores(task(mine, change=alone)), scores(task(other, change=alone)))
    assert (found.test, found.p_value) == ("exact McNemar", mcnemar_p(5, 1))


def test_equal_labels_of_two_tasks_are_two_clusters() -> None:
    both = [scores(task(v, "a", change=in_clusters("x ")), task(v, "b", change=in_clusters("x ")))
            for v in ([1.0, 0.0], [0.0, 0.0])]  # fmt: skip
    assert compare(*both).test == "exact McNemar"


def test_one_cluster_alone_shows_nothing() -> None:
    found = compare_pairs([(1.0, 0.0)] * 9, clusters=["a"] * 9)
    assert (found.low, found.high, found.p_value) == (-math.inf, math.inf, 1.0)


def test_clustered_tests_err_no_more_often_than_alpha_where_plain_ones_do() -> None:
    draw = np.random.default_rng(5)
    wrong = {"clustered": 0, "plain": 0}
    for _ in range(400):
        shared = np.repeat(draw.normal(size=30), 10)
        values = [(v, 0.0) for v in shared + draw.normal(size=300)]
        labels = [str(i // 10) for i in range(300)]
        wrong["clustered"] += compare_pairs(values, clusters=labels).p_value <= 0.05
        wrong["plain"] += compare_pairs(values).p_value <= 0.05
    assert wrong["clustered"] / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert wrong["plain"] / 400 > 0.15


def test_the_detectable_difference_shrinks_with_the_items_to_come() -> None:
    found = compare_pairs([(v, 0.0) for v in np.random.default_rng(0).normal(size=100)])
    now, later = found.detectable(0.05), found.detectable(0.05, n=400)
    assert now is not None
    assert later == pytest.approx(now / 2)
    shares = compare_pairs([(1.0, 0.0)] * 6 + [(0.0, 1.0)] * 4 + [(1.0, 1.0)] * 90)
    assert shares.detectable(0.05, n=700) == detectable_share(700, 0.1, 0.05)


def test_how_many_items_differ_is_said() -> None:
    mine = scores(task([1, 0, 1]))
    other = scores(task([1, 0, 1], change=lambda i: {"prompt_hash": "new"} if i else {}))
    message = "task a, item 1: the prompt is not the same for both models, as on 2 of 3 items"
    with pytest.raises(EvaluationError, match=message):
        pair(mine, other)
