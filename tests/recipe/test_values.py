"""Numbers, gradients and choices by name."""

from __future__ import annotations

import pytest

from mergeops.errors import ConfigError
from mergeops.recipe.values import MatchedValue, choose, interpolate, numbers, plain, read_setting

CHOICES = [{"match": "*mlp*", "value": [0, 1]}, 0.5]


def test_the_first_choice_that_matches_decides() -> None:
    setting = read_setting("sources.a.weight", CHOICES)
    assert setting == (MatchedValue("*mlp*", (0.0, 1.0)), MatchedValue("*", 0.5))
    assert choose(setting, "layers.0.mlp.w") == (0.0, 1.0)
    assert choose(setting, "norm") == 0.5
    assert list(numbers(setting)) == [0.0, 1.0, 0.5]


def test_no_choice_that_matches_leaves_it_to_the_next_level() -> None:
    assert choose(read_setting("x", [{"match": "*mlp*", "value": 1}]), "norm") is None
    assert choose(None, "norm") is None


def test_plain_types_read_as_the_same_setting() -> None:
    for raw in (0.5, [0, 1], CHOICES):
        setting = read_setting("x", raw)
        assert read_setting("x", plain(setting)) == setting


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        ("heavy", "x is 'heavy'; it takes a number, or a list as gradient"),
        (True, "x is True; it takes a number"),
        ([], r"x is \[\]; a gradient is a list of numbers"),
        ([{"match": 3, "value": 1}], r"x\[0\].match is 3; it takes a glob"),
        ([{"match": "*"}], r"x\[0\].value is None; it takes a number"),
        ([{"glob": "*", "value": 1}], r"unknown key x\[0\].glob"),
    ],
)
def test_what_is_no_setting_is_named(raw: object, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read_setting("x", raw)


def test_a_gradient_is_linear_between_its_values() -> None:
    assert [interpolate((1.0, 3.0, 0.0), d) for d in (0.0, 0.25, 0.5, 1.0)] == [1.0, 2.0, 3.0, 0.0]
    assert interpolate((2.0,), 0.7) == 2.0
