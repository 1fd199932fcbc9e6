"""trainer_state.json, as trainers and others write it."""

from __future__ import annotations

from typing import Any

import pytest

from mergeops.sources.fingerprint import is_finite, logged_values


def test_losses_are_found_by_their_step() -> None:
    history = [{"step": 2, "eval_loss": 1.5}, {"step": 3, "loss": 9.0}, {"step": 4, "eval_loss": 1}]
    assert logged_values({"log_history": history}, "eval_loss") == {2: 1.5, 4: 1.0}


@pytest.mark.parametrize(
    "history", [None, 3, "x", {"step": 2}, [3], [[]], [{"step": "2", "eval_loss": 1.0}]]
)
def test_a_history_of_another_type_holds_no_loss(history: Any) -> None:
    assert logged_values({"log_history": history}, "eval_loss") == {}


@pytest.mark.parametrize("value", [True, None, "1", float("nan"), float("inf"), 1e308, 10**400])
def test_what_is_no_number_is_no_loss(value: Any) -> None:
    assert not is_finite(value)
    assert logged_values({"log_history": [{"step": 2, "eval_loss": value}]}, "eval_loss") == {}
