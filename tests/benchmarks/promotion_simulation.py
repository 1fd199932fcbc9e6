"""How often does a whole search end in a wrong promotion, and how often in a right one?

    python tests/benchmarks/promotion_simulation.py --out docs

A search makes M correlated merges of three parents and scores all on the dev items. The real choice
rule (``candidates.rank``) picks one merge, ``references.best_parent`` one parent, and the real gate
(``gate.judge``) holds the one against the other on the confirm items, at the level that
``spending.level_of`` gives. Only the answers to the items are drawn at random.

A model answers an item rightly when difficulty, what all merges of a search share, and its own luck
add up to more than a threshold (a probit model). Equal thresholds make equally good models.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from mergeops.promotion.candidates import RegisteredMerge, rank
from mergeops.promotion.gate import judge
from mergeops.promotion.references import best_parent
from mergeops.promotion.uses import level_of
from mergeops.recipe.settings import PromoteSpec
from mergeops.scores import ItemResult, Scores, TaskScore
from mergeops.scores.proportions import mcnemar_p

PARENTS = 3
ACCURACY = 0.6
DIFFICULTY = 0.93
"""Correlation of a merge with a parent on the latent scale: they differ on about 12 % of items."""
SHARED = 0.5
"""Share of what is left that the merges of one search have in common."""
CANDIDATES = (1, 8, 64)
ITEMS = (500, 1000, 2000)
GAINS = (0.02, 0.04)
SEARCHES = 6000
"""Of each line of docs/evidence.md; a quarter of it for lives and for merges that are better."""
SPEC = PromoteSpec(against=("best_parent",))


@dataclass(frozen=True)
class Search:
    """What became of one simulated search."""

    promoted: bool
    right: bool
    """The promoted one is truly better."""
    apparent_gain: float
    """Of the chosen merge over the chosen parent on dev."""
    naive: bool
    """Promoted where a higher dev score is enough."""
    dev_test: bool
    """Promoted where a paired test of level alpha on dev is enough."""


class World:
    """Items with their difficulties, three parents, and searches that all use them.

    Args:
        n: items of each part.
    """

    def __init__(self, n: int, generator: np.random.Generator) -> None:
        self.n = n
        self.generator = generator
        self.difficulty = np.sqrt(DIFFICULTY) * generator.standard_normal(2 * n)
        luck = generator.standard_normal((PARENTS, 2 * n))
        self.parents = self._answers(np.sqrt(1 - DIFFICULTY) * luck, np.full(PARENTS, ACCURACY))
        self.dev = {f"parent {i}": scores(p[:n], "dev") for i, p in enumerate(self.parents)}
        self.best = best_parent(self.dev)

    def search(self, m: int, gain: float = 0.0, use: int = 1) -> Search:
        """M merges, the first of them better by ``gain``, one of them judged.

        Args:
            use: of the confirm part.
        """
        n, left = self.n, 1 - DIFFICULTY
        together = np.sqrt(left * SHARED) * self.generator.standard_normal(2 * n)
        alone = np.sqrt(left * (1 - SHARED)) * self.generator.standard_normal((m, 2 * n))
        accuracy = np.full(m, ACCURACY)
        accuracy[0] += gain
        merges = self._answers(together + alone, accuracy)
        means = merges[:, :n].mean(axis=1)
        found = rank(
            RegisteredMerge(i + 1, "", None, "", f"merge {i}", "candidate", float(mean))
            for i, mean in enumerate(means)
        )
        chosen = found[0].version - 1
        parent = self.parents[list(self.dev).index(self.best)]
        verdict = judge(
            scores(merges[chosen, n:], "confirm", "merge"),
            {"best_parent": scores(parent[n:], "confirm", "parent")},
            SPEC,
            level=level_of(use, SPEC.alpha),
        )
        wins = int((merges[chosen, :n] > parent[:n]).sum())
        losses = int((merges[chosen, :n] < parent[:n]).sum())
        return Search(
            promoted=verdict.promotes,
            right=verdict.promotes and gain > 0 and chosen == 0,
            apparent_gain=(wins - losses) / n,
            naive=wins > losses,
            dev_test=mcnemar_p(wins, losses) <= SPEC.alpha,
        )

    def _answers(self, luck: Any, accuracy: Any) -> Any:
        thresholds = np.array([NormalDist().inv_cdf(1 - a) for a in accuracy])
        return (self.difficulty + luck > thresholds[:, None]).astype(np.int8)


def scores(answers: Any, part: str, name: str = "parent") -> Scores:
    """Answers of 0 and 1 as the scores of one task."""
    made = _items(len(answers))
    items = tuple(made[i][value] for i, value in enumerate(answers.tolist()))
    mean = float(answers.mean())
    return Scores(name, part, {"task": TaskScore("task", "acc", mean, None, items, "1", "x")}, {})


@functools.cache
def _items(n: int) -> list[tuple[ItemResult, ItemResult]]:
    return [
        (ItemResult(i, f"d{i}", f"p{i}", "t", 0.0), ItemResult(i, f"d{i}", f"p{i}", "t", 1.0))
        for i in range(n)
    ]


def under_the_null(searches: int, n: int, m: int, seed: int) -> dict[str, Any]:
    """No merge is better than its parents: every promotion is a wrong one."""
    generator = np.random.default_rng([seed, n, m])
    found = [World(n, generator).search(m) for _ in range(searches)]
    rate = float(np.mean([f.promoted for f in found]))
    return {
        "items": n,
        "candidates": m,
        "searches": searches,
        "apparent_gain": float(np.mean([f.apparent_gain for f in found])),
        "naive": float(np.mean([f.naive for f in found])),
        "dev_test": float(np.mean([f.dev_test for f in found])),
        "gate": rate,
        "gate_error": float(np.sqrt(rate * (1 - rate) / searches)),
    }


def over_a_life(lives: int, n: int, m: int, seed: int, uses: int = 8) -> dict[str, Any]:
    """Search after search on the same items, until one is promoted: was any, wrongly?"""
    generator = np.random.default_rng([seed, n, m, uses])
    wrong = 0
    for _ in range(lives):
        world = World(n, generator)
        wrong += any(world.search(m, use=use).promoted for use in range(1, uses + 1))
    rate = wrong / lives
    error = float(np.sqrt(rate * (1 - rate) / lives))
    return {
        "items": n,
        "candidates": m,
        "uses": uses,
        "lives": lives,
        "gate": rate,
        "gate_error": error,
    }


def power(searches: int, n: int, m: int, gain: float, seed: int) -> dict[str, Any]:
    """One merge of M is better by ``gain``: how often is that one promoted?"""
    generator = np.random.default_rng([seed, n, m, abs(round(1000 * gain))])
    found = [World(n, generator).search(m, gain) for _ in range(searches)]
    return {
        "items": n,
        "candidates": m,
        "gain": gain,
        "searches": searches,
        "right": float(np.mean([f.right for f in found])),
        "wrong": float(np.mean([f.promoted and not f.right for f in found])),
    }


def simulate(searches: int, seed: int = 0) -> dict[str, Any]:
    """Everything that docs/evidence.md shows."""
    return {
        "null": [under_the_null(searches, n, m, seed) for n in (500, 1000) for m in CANDIDATES],
        "life": [over_a_life(searches // 4, 500, m, seed) for m in CANDIDATES],
        "power": [
            power(searches // 4, n, m, gain, seed)
            for gain in GAINS
            for m in CANDIDATES
            for n in ITEMS
        ],
    }


def plot(found: dict[str, Any], path: Path) -> None:
    """Wrong promotions on the left, right ones on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    rows = [row for row in found["null"] if row["items"] == 500]
    for key, label, marker in (
        ("naive", "higher on dev is enough", "s"),
        ("dev_test", "p < 0.05 on dev", "D"),
        ("gate", "mergeops, one promotion", "o"),
    ):
        left.plot([r["candidates"] for r in rows], [100 * r[key] for r in rows], marker, ls="-",
                  label=label)  # fmt: skip
    lives = found["life"]
    label = f"mergeops, {lives[0]['uses']} uses of one confirm part"
    left.plot(
        [r["candidates"] for r in lives], [100 * r["gate"] for r in lives], "v", ls="-", label=label
    )
    left.axhline(5, color="grey", ls=":")
    left.set(
        xscale="log",
        ylim=(0, 104),
        xlabel="merges in the search",
        ylabel="wrongly promoted, %",
        title="No merge is better (500 + 500 items)",
    )
    left.set_xticks(CANDIDATES, map(str, CANDIDATES))
    left.legend()
    for gain, style in zip(GAINS, ("--", "-"), strict=True):
        for m, marker in zip(CANDIDATES, "osD", strict=True):
            cells = [r for r in found["power"] if r["gain"] == gain and r["candidates"] == m]
            right.plot(
                [r["items"] for r in cells],
                [100 * r["right"] for r in cells],
                marker,
                ls=style,
                label=f"+{100 * gain:.0f} points, one of {m}",
            )
    right.set(
        ylim=(0, 104),
        xlabel="confirm items (and as many dev items)",
        ylabel="the better merge is promoted, %",
        title="One merge is better",
    )
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Simulate, then write the numbers and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=int, default=SEARCHES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    wanted = parser.parse_args()
    started = time.monotonic()
    found = simulate(wanted.searches, wanted.seed)
    wanted.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1)
    (wanted.out / "promotion_simulation.json").write_text(text + "\n", encoding="utf-8")
    plot(found, wanted.out / "promotion_simulation.png")
    print(text)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
