"""Strict conversion of plain dicts: every refusal names the key, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from mergeops.errors import ConfigError
from mergeops.schema import build, check_choice, check_range


@dataclass(frozen=True)
class Inner:
    depth: int = 1
    label: str | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    share: float = 0.5
    flag: bool = False
    tasks: tuple[str, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    inner: Inner = Inner()


def test_a_full_dict_becomes_the_dataclass() -> None:
    raw = {
        "name": "x",
        "share": 1,
        "flag": True,
        "tasks": ["a", "b"],
        "metrics": {"a": "acc"},
        "inner": {"depth": 3, "label": None},
    }
    built = build(Outer, raw, "")
    assert built == Outer("x", 1.0, True, ("a", "b"), {"a": "acc"}, Inner(3, None))
    assert isinstance(built.share, float)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "^top.name is missing$"),
        ({"name": "x", "shaer": 1}, "unknown key top.shaer; did you mean 'share'"),
        ({"name": 3}, "top.name is 3; it takes a text"),
        ({"name": "x", "share": "half"}, "top.share is 'half'; it takes a number"),
        ({"name": "x", "share": True}, "top.share is True; it takes a number"),
        ({"name": "x", "share": float("nan")}, "top.share is nan; it takes a finite number"),
        ({"name": "x", "flag": 1}, "top.flag is 1; it takes true or false"),
        ({"name": "x", "tasks": "a"}, "top.tasks is 'a'; it takes a list"),
        ({"name": "x", "tasks": ["a", 2]}, r"top.tasks\[1\] is 2; it takes a text"),
        ({"name": "x", "metrics": ["a"]}, r"top.metrics is \['a'\]; it takes a mapping"),
        ({"name": "x", "metrics": {"a": 1}}, "top.metrics.a is 1; it takes a text"),
        ({"name": "x", "inner": {"depht": 1}}, "unknown key top.inner.depht; did you mean 'depth'"),
        ({"name": "x", "inner": {"depth": 1.5}}, "top.inner.depth is 1.5; it takes a whole number"),
        ({"name": "x", "inner": 4}, "top.inner is 4; it takes a mapping"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_full_key(raw: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Outer, raw, "top.")


@pytest.mark.parametrize(
    ("low", "high", "allowed"),
    [(0.0, 1.0, "from 0 to 1"), (3.0, None, "at least 3"), (None, 1.0, "at most 1")],
)
def test_a_number_out_of_range_is_refused_with_the_range(
    low: float | None, high: float | None, allowed: str
) -> None:
    with pytest.raises(ConfigError, match=f"x is 2; allowed: {allowed}"):
        check_range("x", 2, low, high)


def test_the_bounds_themselves_are_allowed() -> None:
    check_range("x", 0, 0, 1)
    check_range("x", 1, 0, 1)


def test_nan_is_in_no_range() -> None:
    with pytest.raises(ConfigError, match="x is nan"):
        check_range("x", float("nan"), 0, 1)


def test_a_word_outside_the_choices_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="dtype is 'fp8'; allowed: float32, float64"):
        check_choice("dtype", "fp8", ("float32", "float64"))
