"""Controls: which recipe is left without a source, and how the findings read."""

from __future__ import annotations

from typing import Any

import pytest

from mergeops.errors import ConfigError
from mergeops.promotion.controls import Control, Controls, Gain, with_sources, without_source
from mergeops.recipe.recipe import Recipe
from mergeops.scores.intervals import Estimate


def recipe(**changes: Any) -> Recipe:
    raw: dict[str, Any] = {
        "method": {"name": "ties", "density": 0.4},
        "base": "base",
        "sources": {"math": {"uri": "m", "weight": 0.5}, "dates": {"uri": "d"}},
        "rules": [
            {"match": "*.mlp.*", "weight": {"math": [0.0, 1.0], "dates": 0.3}},
            {"match": "*.norm.*", "weight": {"math": 0.1}},
            {"match": "*", "density": 0.9},
        ],
    }
    return Recipe.from_dict(raw | changes)


def test_the_recipe_without_a_source_keeps_everything_else() -> None:
    left = without_source(recipe(), "math")
    assert list(left.sources) == ["dates"]
    assert left.method == recipe().method
    rules = [(rule.match, dict(rule.parameters)) for rule in left.rules]
    assert [match for match, _ in rules] == ["*.mlp.*", "*"]
    assert list(rules[0][1]["weight"]) == ["dates"]
    assert with_sources(recipe(), ["dates"]) == left


def test_a_recipe_that_needs_the_source_elsewhere_cannot_do_without() -> None:
    with pytest.raises(ConfigError, match="math"):
        without_source(recipe(tokenizer={"source": "math"}), "math")


def control(low: float, high: float, **changes: Any) -> Control:
    wanted = {"kind": "leave-one-out", "status": "FAILED", "note": "", **changes}
    gain = Gain((low + high) / 2, low, high)
    score = Estimate(0.5, (0.4, 0.6))
    return Control(source="math", score=score, gain=gain, **wanted)


def test_a_source_helps_or_hurts_only_where_its_interval_says_so() -> None:
    found = [control(0.01, 0.03), control(-0.03, -0.01), control(-0.01, 0.03)]
    assert [one.finding for one in found] == ["helps", "hurts", "not shown"]


def test_a_control_that_could_not_be_made_is_a_row_that_says_why() -> None:
    wanted = {"kind": "random", "status": "", "note": "not made: no tensors"}
    lost = Control(source="math", score=None, gain=None, **wanted)
    shown = Controls("skills", 3, "0.5 [0.4, 0.6]", (control(0.01, 0.03), lost))
    assert shown.rows() == [
        (
            "math",
            "FAILED",
            "nothing",
            "0.500 [0.400, 0.600]",
            "+0.020 [+0.010, +0.030]",
            "helps",
            "",
        ),
        ("math", "-", "noise", "-", "-", "-", "not made: no tensors"),
    ]
    assert "| math | FAILED | nothing | 0.500 [0.400, 0.600] |" in shown.markdown()
    plain = shown.to_dict()["controls"]
    assert (plain[0]["score"], plain[0]["score_interval"]) == (0.5, (0.4, 0.6))
    assert (plain[1]["score"], plain[1]["score_interval"]) == (None, None)
    assert (plain[0]["finding"], plain[0]["gain"]["low"], plain[1]["gain"]) == ("helps", 0.01, None)
