"""Strict conversion of plain dicts: every refusal names the key, the value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from mergeops.errors import ConfigError
from mergeops.schema import build, check_choice, check_range, is_finite, read_yaml


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


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40))
"""A trillion nodes."""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 2024-13-45", "month must be in 1..12"),
        ("a: !!int ''", "string index out of range"),
        ("a: !!bool x", "'x'"),
        ("a: !!timestamp x", "'NoneType' object has no attribute 'groupdict'"),
        ("a: " + "1" * 5000, "Exceeds the limit (4300 digits)"),
        ("a: 0x" + "f" * 5000, "Exceeds the limit (4300 digits)"),
        ("a: [", "while parsing a flow node"),
        ("a: &b [*b]", "nested too deeply, or too large"),
        (
            "a0: &a0 [x, x]\n"
            + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
            "nested too deeply, or too large",
        ),
        ("[" * 5000 + "]" * 5000, "maximum recursion depth exceeded"),
    ],
)
def test_yaml_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        read_yaml(text)


def test_yaml_is_read_as_plain_types() -> None:
    assert read_yaml(b"a: &x [1, 2.5, null]\nb: *x") == {"a": [1, 2.5, None], "b": [1, 2.5, None]}


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan"), True, "1"])
def test_numbers_that_no_double_holds_are_not_finite(value: object) -> None:
    assert not is_finite(value)
    assert is_finite(10**300) and is_finite(-2.5)
