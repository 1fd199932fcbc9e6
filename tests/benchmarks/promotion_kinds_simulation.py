"""How often an equal merge is promoted where scores are no means of 0 and 1.

    python tests/benchmarks/promotion_kinds_simulation.py [SEARCHES]

Each search draws a parent and merges that are no better, chooses the best merge on dev and holds it
against the parent on confirm, its first use. The choice (``Scores.merit``), level (``level_of``)
and verdict (``gate.judge``) are the real ones. Prints the table of docs/evidence.md.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from mergeops.promotion.gate import judge
from mergeops.promotion.uses import level_of
from mergeops.recipe import PromoteSpec
from mergeops.scores import CORPUS, UNITS, ItemResult, Scores, TaskScore

ALPHA = 0.05
# A margin that never decides: only the test of "better" is looked at.
SPEC = PromoteSpec(alpha=ALPHA, margin=1.0)
DRAWS = 200
SEARCHES = 2000
KINDS = ("perplexity", "F1", "clusters")


def made(part: str, values: Any, weights: Any = None, clusters: Any = None, **facts: Any) -> Scores:
    n = len(values)
    weights = np.ones(n) if weights is None else weights
    clusters = [""] * n if clusters is None else clusters
    items = tuple(
        ItemResult(i, f"d{i}", f"p{i}", "t", float(values[i]), clusters[i], float(weights[i]))
        for i in range(n)
    )
    number = values.sum() / weights.sum()
    facts = {"value": number, "metric": "m", "stderr": None, "version": "1", "digest": "x", **facts}
    return Scores(str(id(items)), part, {"t": TaskScore(task="t", items=items, **facts)}, {})


def perplexities(generator: Any, n: int, models: int, part: str) -> list[Scores]:
    """Texts of very different lengths; what one model gains on a text grows with its length."""
    words = 1 + generator.lognormal(4, 1, size=n).astype(int)
    hard = generator.normal(3, 0.5, size=n)
    own = generator.normal(0, 0.2, size=(models, n)) + generator.normal(
        0, 1, size=(models, n)
    ) / np.sqrt(words)
    nats = words * (hard + own)
    return [
        made(
            part,
            row,
            words,
            kind=UNITS,
            by_log=True,
            higher_is_better=False,
            value=math.exp(row.sum() / words.sum()),
        )
        for row in nats
    ]


def f1_scores(generator: Any, n: int, models: int, part: str) -> list[Scores]:
    """A rare class; models share what is hard."""
    gold = generator.random(n) < 0.2
    hard = generator.standard_normal(n)
    found = []
    counts = generator.multinomial(n, np.full(n, 1 / n), size=DRAWS)
    for _ in range(models):
        luck = 0.7 * hard + 0.71 * generator.standard_normal(n)
        answers = np.where(luck > 1.0, ~gold, gold)
        both, either = (gold & answers), gold.astype(int) + answers.astype(int)
        replicates = 2 * (counts @ both) / np.maximum(1, counts @ either)
        value = 2 * both.sum() / either.sum()
        facts = {"kind": CORPUS, "value": float(value), "replicates": tuple(replicates)}
        found.append(made(part, np.zeros(n), **facts))
    return found


def clustered(generator: Any, n: int, models: int, part: str) -> list[Scores]:
    """Questions about passages, ten each: a model knows a passage or does not."""
    labels = [f"passage {i // 10}" for i in range(n)]
    hard = generator.standard_normal(n)
    found = []
    for _ in range(models):
        known = np.repeat(generator.standard_normal(n // 10), 10)
        luck = 0.6 * hard + 0.6 * known + 0.53 * generator.standard_normal(n)
        found.append(made(part, (luck > -0.25).astype(float), clusters=labels))
    return found


MAKERS = {"perplexity": perplexities, "F1": f1_scores, "clusters": clustered}


def wrong_promotions(kind: str, n: int, merges: int, searches: int, seed: int = 0) -> float:
    """The share of searches in which a merge that is no better was promoted."""
    generator = np.random.default_rng([seed, n, merges, KINDS.index(kind)])
    promoted = 0
    for _ in range(searches):
        _, *dev = MAKERS[kind](generator, n, merges + 1, "dev")
        parent, *confirm = MAKERS[kind](generator, n, merges + 1, "confirm")
        best = max(range(merges), key=lambda i: dev[i].merit)
        verdict = judge(confirm[best], {"best_parent": parent}, SPEC, level=level_of(1, ALPHA))
        promoted += verdict.promotes
    return promoted / searches


if __name__ == "__main__":
    searches = int(sys.argv[1]) if len(sys.argv) > 1 else SEARCHES
    print("| scores | items in each part | merges | wrongly promoted |\n| --- | --- | --- | --- |")
    for kind in KINDS:
        for n in (100, 500):
            share = wrong_promotions(kind, n, 4, searches)
            print(f"| {kind} | {n} | 4 | {100 * share:.1f} % |", flush=True)
