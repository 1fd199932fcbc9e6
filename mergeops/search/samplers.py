"""Optuna's samplers, and what each can choose from."""

from __future__ import annotations

import warnings
from typing import Any

from mergeops.errors import ConfigError
from mergeops.search.space import Choices

SAMPLERS = ("tpe", "gp", "cmaes", "nsga2", "random")


def open_sampler(
    name: str, space: Choices, seed: int, *, objectives: int = 1, has_limits: bool = False
) -> Any:
    """Optuna's sampler of that name.

    Args:
        objectives: how many numbers are to be large.
        has_limits: whether candidates have to keep something.

    Raises:
        ConfigError: it cannot choose from this space, or for these objectives.
    """
    from optuna import samplers
    from optuna.exceptions import ExperimentalWarning

    if name == "cmaes":
        _check_cma_es(space, objectives, has_limits)
    # Optuna warns of what is experimental; that is for us to know.
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        if name == "tpe":
            # Axes of one method are learned together, apart from those of another.
            return samplers.TPESampler(seed=seed, multivariate=True, group=True)
        if name == "gp":
            return samplers.GPSampler(seed=seed, warn_independent_sampling=False)
        if name == "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if name == "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=_population(space))
        return samplers.RandomSampler(seed=seed)


def _check_cma_es(space: Choices, objectives: int, has_limits: bool) -> None:
    if any(axis.choices for axis in space.axes):
        words = ", ".join(axis.name for axis in space.axes if axis.choices)
        raise ConfigError(
            f"search.sampler=cmaes takes numbers only, and search.space chooses {words}; leave "
            "one method and ranges in it, or take search.sampler=tpe"
        )
    if objectives > 1:
        raise ConfigError(
            f"search.sampler=cmaes takes one objective, and search.objectives has {objectives}; "
            "take search.sampler=tpe, gp or nsga2"
        )
    if has_limits:
        raise ConfigError(
            "search.sampler=cmaes knows no search.constraints; take search.sampler=tpe, gp or nsga2"
        )


def _population(space: Choices) -> int:
    """Of a generation: some for each axis; Optuna's own 50 is a whole study here."""
    return max(8, 2 * len(space.axes))
