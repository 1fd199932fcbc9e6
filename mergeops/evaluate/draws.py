"""Items drawn again, for numbers that only all items together have: BLEU, F1, MCC, a median.

The draws depend on the task and on its items' clusters alone, so two models that answered the same
items have the same draws, and the difference of their numbers is paired.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mergeops.evaluate.metric_kinds import Aggregation

DRAWS = 500
"""Of a standard error from so many, the relative error is 3 %."""


def replicates(
    aggregation: Aggregation, raw: Sequence[Any], task: str, labels: Sequence[str]
) -> list[float]:
    """The metric on ``DRAWS`` draws of the items, clusters whole, by lm-eval's own function.

    Args:
        aggregation: lm-eval's.
        raw: what lm-eval keeps of each item.
        task: its name.
        labels: of each item; equal ones are drawn together.

    Raises:
        ValueError: a draw has no finite value.
    """
    clusters: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        clusters.setdefault(label, []).append(i)
    members = list(clusters.values())
    seed = hashlib.sha256(json.dumps([task, members]).encode()).digest()
    generator = np.random.default_rng(int.from_bytes(seed[:8], "big"))
    of = _by_segment(aggregation, raw) or (lambda ids: float(aggregation([raw[i] for i in ids])))
    values = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that a draw does not hold
        for _ in range(DRAWS):
            drawn = generator.integers(len(members), size=len(members))
            values.append(of([i for g in drawn for i in members[g]]))
    if not all(map(math.isfinite, values)):
        raise ValueError("it has no finite value on items that are drawn again")
    return values


def _by_segment(
    aggregation: Aggregation, raw: Sequence[Any]
) -> Callable[[list[int]], float] | None:
    """sacrebleu's corpus metrics from what it counts in each segment, which is counted once.

    None for others, and where that is not lm-eval's number to the last digits.
    """
    from lm_eval.api import metrics
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    kinds: dict[Aggregation, Callable[[], Any]] = {
        metrics.bleu: BLEU,
        metrics.chrf: CHRF,
        metrics.chrfpp: lambda: CHRF(word_order=2),
        metrics.ter: TER,
    }
    if aggregation not in kinds:
        return None
    references, hypotheses = metrics._sacreformat(*zip(*raw, strict=True))
    metric: Any = kinds[aggregation]()
    counts = metric._extract_corpus_statistics(hypotheses, references)

    def of(ids: list[int]) -> float:
        return float(metric._aggregate_and_compute([counts[i] for i in ids]).score)

    whole = list(range(len(raw)))
    return of if math.isclose(of(whole), float(aggregation(list(raw))), rel_tol=1e-9) else None
