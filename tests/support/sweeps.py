"""Cases of a sweep: a few for every run of the tests, the rest for ``make test-all``."""

from __future__ import annotations

from typing import Any

import pytest


def seeds(n: int, *, always: int = 2) -> list[Any]:
    """The seeds 0 to n-1; all but the first ``always`` are marked ``sweep``."""
    return [*range(always), *(pytest.param(i, marks=pytest.mark.sweep) for i in range(always, n))]
