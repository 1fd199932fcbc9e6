"""Alpha is spent, never overspent."""

from __future__ import annotations

import pytest

from mergeops.promotion.uses import level_of


def test_the_first_levels_by_hand() -> None:
    levels = [level_of(k, 0.06) for k in (1, 2, 3, 4)]
    assert levels == pytest.approx([0.03, 0.01, 0.005, 0.003])


def test_all_uses_together_spend_alpha_and_no_more() -> None:
    # The sum to k is alpha (1 - 1 / (k + 1)).
    assert sum(level_of(k, 0.05) for k in range(1, 10_000)) == pytest.approx(0.05, rel=2e-4)
    assert sum(level_of(k, 0.05) for k in range(1, 10_000)) < 0.05


def test_there_is_no_use_before_the_first() -> None:
    with pytest.raises(ValueError, match="use is 0; the first is 1"):
        level_of(0, 0.05)
