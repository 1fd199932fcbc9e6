"""What a study may spend: so many full evaluations, or so much time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mergeops.errors import ConfigError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Budget:
    """An end of a study."""

    evaluations: float | None = None
    """Answers, in those of one candidate that is asked everything."""
    seconds: float | None = None
    """Of merging and scoring, of all commands that went on with the study together."""

    def is_spent(self, evaluations: float, seconds: float) -> bool:
        """Whether nothing new is to be begun."""
        return (self.evaluations is not None and evaluations >= self.evaluations) or (
            self.seconds is not None and seconds >= self.seconds
        )


def read_budget(text: str) -> Budget:
    """What ``search.budget`` says; empty is no end.

    Raises:
        ConfigError: neither a time nor a number of evaluations, or none at all.
    """
    if not text:
        return Budget()
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([smhd]|evaluations?)\s*", text)
    if match is None or float(match[1]) == 0:
        raise ConfigError(
            f"search.budget is {text!r}; it takes a time or full evaluations, e.g. 2h, 30m or "
            "'20 evaluations'"
        )
    number, unit = float(match[1]), match[2]
    if unit in _UNITS:
        return Budget(seconds=number * _UNITS[unit])
    return Budget(evaluations=number)
