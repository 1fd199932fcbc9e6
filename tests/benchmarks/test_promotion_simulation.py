"""The simulation of whole searches, small: the figures in docs/evidence.md are its large run."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    return load("promotion_simulation")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("m", [1, 8, 64])
def test_equal_merges_are_promoted_in_no_more_searches_than_the_first_uses_level_allows(
    simulation: ModuleType, m: int
) -> None:
    found = simulation.under_the_null(300, 500, m, seed=1)
    assert found["gate"] <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 300)
    if m == 64:
        # What the gate is there for.
        assert found["naive"] > 0.7
        assert found["apparent_gain"] > 0.008


def test_uses_of_one_confirm_part_share_one_alpha(simulation: ModuleType) -> None:
    assert simulation.over_a_life(60, 500, 8, seed=1)["gate"] <= 0.05 + 0.084


def test_a_much_better_merge_is_found_and_a_worse_one_is_not(simulation: ModuleType) -> None:
    assert simulation.power(60, 1000, 8, 0.06, seed=1)["right"] > 0.9
    assert simulation.power(60, 1000, 1, -0.06, seed=1)["wrong"] == 0


def test_the_documented_figures_are_those_of_the_documented_run_and_keep_the_promise(
    simulation: ModuleType,
) -> None:
    docs = FOLDER.parent.parent / "docs"
    found = json.loads((docs / "promotion_simulation.json").read_text())
    text = (docs / "evidence.md").read_text()
    for row in found["null"]:
        n = simulation.SEARCHES
        assert row["gate"] <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / n)
        assert row["searches"] == n
        assert f"| {row['items']} | {row['candidates']} | {100 * row['gate']:.1f} % |" in text
    for row in found["life"]:
        assert row["gate"] <= 0.05
        assert f"| {row['candidates']} | {100 * row['gate']:.1f} % |" in text
    right = {(r["gain"], r["candidates"], r["items"]): r["right"] for r in found["power"]}
    for gain in simulation.GAINS:
        for m in simulation.CANDIDATES:
            rates = [f"{100 * right[gain, m, n]:.0f} %" for n in simulation.ITEMS]
            assert f"| +{100 * gain:.0f} points | {m} | {' | '.join(rates)} |\n" in text
    assert max(r["wrong"] for r in found["power"]) <= 0.011


@pytest.mark.parametrize("kind", ["perplexity", "F1", "clusters"])
def test_equal_merges_are_promoted_no_more_often_whatever_kind_their_scores_are_of(
    kind: str,
) -> None:
    simulation = load("promotion_kinds_simulation")
    # Three standard errors of 150 searches are 3.8 points.
    assert simulation.wrong_promotions(kind, 100, 2, 150, seed=1) <= 0.025 + 0.038


def test_a_watch_proposes_what_is_better_and_nothing_where_nothing_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    simulation = load("watch_simulation")
    better = simulation.live(400, 0.05, np.random.default_rng(2))
    assert better.proposals >= 1 and better.wrong == 0
    assert better.gained > 0.05 and len(better.waits) > 2
    equal = [simulation.live(300, 0.0, np.random.default_rng(seed)) for seed in range(3)]
    assert sum(life.opened for life in equal) > 0
    assert [life.proposals for life in equal] == [0, 0, 0]


def test_the_documented_lives_of_a_watch_keep_the_promise() -> None:
    docs = FOLDER.parent.parent / "docs"
    found = json.loads((docs / "watch_simulation.json").read_text())
    text = (docs / "service.md").read_text()
    for row in found:
        assert row["wrong_lives"] <= 0.05
        wait = "" if row["median_wait"] is None else f"{row['median_wait']:.0f}"
        cells = [
            f"{row['items']:,}",
            f"{100 * row['useful']:.0f} %",
            f"{100 * row['wrong_lives']:.1f} %",
            f"{row['proposals']:.1f}",
            f"{100 * row['used']:.0f} %" if row["useful"] else "",
            wait,
            f"{100 * row['gained']:+.1f}",
            f"{row['opened']:.1f}",
            f"{row['answers_a_run']:,.0f}",
        ]
        assert f"| {' | '.join(cells)} |".replace("  ", " ") in text
