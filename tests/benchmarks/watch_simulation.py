"""How often does a watch propose what is no better, and how soon does it use what is?

    python tests/benchmarks/watch_simulation.py --out docs

A watch lives through 200 runs, one after the other. Each is added to the best merge so far; the
step, the threshold on dev (``watching.gain_over``), the month's budget of confirm uses, the level
of each (``uses.level_of``) and the verdict (``gate.judge``) are the real ones, with the defaults of
``conf/watch/default.yaml``. Every proposal is approved at once. Only the answers are drawn: a merge
answers an item rightly when difficulty and its own luck add up to more than a threshold (a probit
model). A run renews a part of the luck; a useful one also lowers the threshold. The search around a
better merge tries others that are no better and have other luck, and takes the one that is best on
dev: all its gain is luck.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from promotion_simulation import scores

from mergeops.promotion.gate import judge
from mergeops.promotion.uses import level_of
from mergeops.recipe.settings import PromoteSpec
from mergeops.watching.spec import WatchSpec
from mergeops.watching.trying import gain_over

RUNS = 200
RUNS_A_DAY = 4
GAIN = 0.02
"""Of a useful run."""
USEFUL = (0.0, 0.01, 0.02, 0.05)
"""Shares of the runs."""
ITEMS = (1000, 4000)
"""Of each part."""
LIVES = 100
ACCURACY = 0.6
DIFFICULTY = 0.93
"""Of a merge's latent score, the part that all models share."""
RENEWED = 0.1
"""Of a merge's own luck, the part that one more run changes: answers to 3.5 % of the items."""
TUNED = 0.05
"""The part that other weights change: answers to 2.5 % of the items."""
SPEC = PromoteSpec(against=("champion",))
WATCH = WatchSpec.from_dict({"name": "simulated", "experiments": ["runs"]})


@dataclass
class Life:
    """What became of one watch."""

    proposals: int = 0
    wrong: int = 0
    """Proposals that were no better than the champion of then."""
    opened: int = 0
    waits: list[int] = field(default_factory=list)
    """Of each useful run that came into the champion, the runs from its end until then."""
    useful: int = 0
    gained: float = 0.0
    """Of the last champion over the first, truly."""


@dataclass
class Merge:
    """A merge: its luck, and how good it truly is."""

    luck: Any
    skill: float
    since: tuple[int, ...] = ()
    """When each useful run in it ended."""


def live(n: int, useful: float, generator: np.random.Generator) -> Life:
    """One watch over its runs.

    Args:
        n: items of each part.
        useful: share of runs that make the merge better by ``GAIN``; the others change nothing.
    """
    difficulty = np.sqrt(DIFFICULTY) * generator.standard_normal(2 * n)
    life, month, uses_this_month = Life(), 0, 0

    def right(merge: Merge) -> Any:
        threshold = NormalDist().inv_cdf(1 - merge.skill)
        return difficulty + np.sqrt(1 - DIFFICULTY) * merge.luck > threshold

    def answered(merge: Merge, part: str) -> Any:
        values = right(merge)
        return scores(values[:n] if part == "dev" else values[n:], part, str(id(merge)))

    def searched(merge: Merge) -> Merge:
        others = [
            Merge(renewed(merge.luck, TUNED, generator), merge.skill, merge.since)
            for _ in range(WATCH.budget.search)
        ]
        return max([merge, *others], key=lambda each: right(each)[:n].mean())

    champion = standing = Merge(generator.standard_normal(2 * n), ACCURACY)
    on_dev = {"champion": answered(champion, "dev"), "standing": answered(standing, "dev")}
    refused: Merge | None = None
    for run in range(RUNS):
        if run // (30 * RUNS_A_DAY) > month:
            month, uses_this_month = run // (30 * RUNS_A_DAY), 0
        is_useful = generator.random() < useful
        life.useful += is_useful
        tried = Merge(
            renewed(standing.luck, RENEWED, generator),
            standing.skill + GAIN * is_useful,
            (*standing.since, *([run] if is_useful else [])),
        )
        score = answered(tried, "dev")
        if score.merit >= on_dev["standing"].merit:
            standing = searched(tried)
            on_dev["standing"] = answered(standing, "dev")
        if standing is champion or standing is refused:
            continue
        _, low = gain_over(on_dev["standing"], on_dev["champion"], WATCH.dev_confidence)
        if low <= 0 or uses_this_month >= WATCH.budget.confirm_uses:
            continue
        uses_this_month += 1
        life.opened += 1
        level = level_of(life.opened, SPEC.alpha)
        reference = {"champion": answered(champion, "confirm")}
        if not judge(answered(standing, "confirm"), reference, SPEC, level=level).promotes:
            # Nothing is proposed twice.
            refused = standing
            continue
        life.proposals += 1
        life.wrong += standing.skill <= champion.skill
        life.waits += [run - since for since in standing.since]
        standing = Merge(standing.luck, standing.skill)
        champion, on_dev["champion"] = standing, on_dev["standing"]
    life.gained = champion.skill - ACCURACY
    return life


def renewed(luck: Any, part: float, generator: np.random.Generator) -> Any:
    """Luck of which a part is drawn anew."""
    return np.sqrt(1 - part) * luck + np.sqrt(part) * generator.standard_normal(len(luck))


def line(n: int, useful: float, lives: int, seed: int) -> dict[str, Any]:
    """What became of many watches."""
    generator = np.random.default_rng([seed, n, round(1000 * useful)])
    lived = [live(n, useful, generator) for _ in range(lives)]
    wrong = float(np.mean([life.wrong > 0 for life in lived]))
    waits = [wait for life in lived for wait in life.waits]
    opened = float(np.mean([life.opened for life in lived]))
    return {
        "items": n,
        "useful": useful,
        "lives": lives,
        "wrong_lives": wrong,
        "wrong_error": float(np.sqrt(wrong * (1 - wrong) / lives)),
        "proposals": float(np.mean([life.proposals for life in lived])),
        "used": sum(map(len, (life.waits for life in lived)))
        / max(1, sum(life.useful for life in lived)),
        "median_wait": float(np.median(waits)) if waits else None,
        "gained": float(np.mean([life.gained for life in lived])),
        "opened": opened,
        # Each run's merge on dev; of a use, the merge on confirm, and the champion once.
        "answers_a_run": n * (1 + 2 * opened / RUNS),
    }


def main() -> None:
    """Simulate, then write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lives", type=int, default=LIVES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    wanted = parser.parse_args()
    started = time.monotonic()
    found = [line(n, useful, wanted.lives, wanted.seed) for n in ITEMS for useful in USEFUL]
    text = json.dumps(found, indent=1)
    (wanted.out / "watch_simulation.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
