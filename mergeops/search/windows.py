"""Windows: means over checkpoints of one run, in place of a learning rate that decays.

The sources are checkpoints of one run, oldest first: in the order of their steps where their URIs
say these, else as the recipe has them. A window is an end, a length and a spacing.
Its weights are those of "WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging"
(https://arxiv.org/abs/2507.17634, theorem 3.1): a mean of checkpoints is the end of a run in which
the updates after the first of them counted less and less. Every window is tried, raced on items.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeops.errors import ConfigError
from mergeops.methods import get
from mergeops.recipe import MethodSpec, Recipe
from mergeops.schema import check_range
from mergeops.search.checkpoints_of_run import oldest_first
from mergeops.search.objectives import EVERYTHING
from mergeops.search.samplers import open_sampler
from mergeops.search.space import Axis, Values
from mergeops.search.strategies import SearchResult, strategy
from mergeops.search.study_run import StudySettings, check_sources, run_study
from mergeops.tools import Tools
from mergeops.tracking import SearchRun

DECAYS = ("uniform", "linear", "1-sqrt", "cosine")


@dataclass(frozen=True)
class WindowsParameters:
    """Parameters of ``windows``."""

    ends: tuple[int, ...] = (0,)
    """Where windows end: 0 at the last checkpoint, 1 at the one before it, ..."""
    lengths: tuple[int, ...] = ()
    """Checkpoints in a window, e.g. [2, 4, 8]; empty: 2 and more."""
    spacings: tuple[int, ...] = (1, 2)
    """Every checkpoint, every second one, ..."""
    weights: tuple[str, ...] = ("uniform", "1-sqrt")
    """Decays that the weights imitate: uniform or linear (which are the same), 1-sqrt, cosine."""
    racing: bool = True
    """Drop a window once it has lost; false asks every window everything."""
    margin: float = 0.01
    """A lead that matters: one that leads by less may be dropped."""
    keep: int = 1
    """How many of the best become trials with a checkpoint, a run and a version."""

    def __post_init__(self) -> None:
        for kind in self.weights:
            if kind not in DECAYS:
                raise ConfigError(f"search.weights has {kind!r}; allowed: {', '.join(DECAYS)}")
        for name, low in (("ends", 0), ("lengths", 2), ("spacings", 1)):
            for value in getattr(self, name):
                check_range(f"search.{name}", value, low, 10_000)
        check_range("search.margin", self.margin, 0.0, 1.0)
        check_range("search.keep", self.keep, 1, 100)


@dataclass(frozen=True, order=True)
class CheckpointWindow:
    """Some checkpoints of a run."""

    end: int
    length: int
    spacing: int
    weights: str

    @property
    def name(self) -> str:
        """What a trial draws."""
        every = f" every {self.spacing}" if self.spacing > 1 else ""
        end = f" before {self.end}" if self.end else ""
        return f"last {self.length}{every}{end} {self.weights}"

    def places(self, count: int) -> list[int]:
        """Positions among so many checkpoints, oldest first."""
        last = count - 1 - self.end
        return [last - i * self.spacing for i in reversed(range(self.length))]


def decay_weights(kind: str, length: int) -> list[float]:
    """Weights of checkpoints, oldest first, that imitate a decay; they sum to 1.

    Between the first checkpoint and the last the updates count w_1 >= ... >= w_{k-1}, so that the
    mean has c_0 = 1 - w_1, c_j = w_j - w_{j+1} and c_{k-1} = w_{k-1} (WSM, theorem 3.1).

    Args:
        kind: one of ``DECAYS``: how w falls from 1 before the window to 0 behind it.
        length: checkpoints.
    """
    shapes: dict[str, Callable[[float], float]] = {
        "uniform": lambda x: 1 - x,
        "linear": lambda x: 1 - x,
        "1-sqrt": lambda x: 1 - math.sqrt(x),
        "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    }
    factors = [shapes[kind](i / length) for i in range(length + 1)]
    return [before - after for before, after in itertools.pairwise(factors)]


@dataclass(frozen=True)
class Windows:
    """All windows of one study; each is one choice."""

    recipe: Recipe
    windows: tuple[CheckpointWindow, ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The window."""
        return (Axis(name="window", choices=tuple(window.name for window in self.windows)),)

    def drawn(self, trial: Any) -> dict[str, Any]:
        """What an Optuna trial draws."""
        return {axis.name: axis.draw(trial) for axis in self.axes}

    def at(self, method: str, weights: Mapping[str, float]) -> dict[str, Any] | None:
        """None: the uniform soup is a baseline, and of other methods there is no window."""
        return None

    def made(self, values: Values) -> Recipe:
        """The recipe of a window."""
        window = next(each for each in self.windows if each.name == values["window"])
        names = list(self.recipe.sources)
        weights = dict(
            zip(
                (names[place] for place in window.places(len(names))),
                decay_weights(window.weights, window.length),
                strict=True,
            )
        )
        return dataclasses.replace(
            self.recipe,
            name=window.name,
            base=None,
            base_adapter=None,
            method=MethodSpec("linear", get("linear").parameters()),
            sources={
                name: dataclasses.replace(spec, parameters={"weight": round(weights[name], 9)})
                for name, spec in self.recipe.sources.items()
                if name in weights
            },
            rules=(),
        )


def windows_of(count: int, parameters: WindowsParameters) -> tuple[CheckpointWindow, ...]:
    """Every window that so many checkpoints have; equal merges once.

    Raises:
        ConfigError: they have none.
    """
    lengths: Sequence[int] = parameters.lengths or range(2, count + 1)
    kinds = dict.fromkeys("uniform" if k == "linear" else k for k in parameters.weights)
    found = tuple(
        CheckpointWindow(end, length, spacing, kind)
        for end in parameters.ends
        for length in lengths
        for spacing in parameters.spacings
        for kind in kinds
        if end + (length - 1) * spacing < count
    )
    if not found:
        raise ConfigError(
            f"none of search.lengths {list(lengths)} fits with search.spacings "
            f"{list(parameters.spacings)} and search.ends {list(parameters.ends)} into the "
            f"{count} checkpoints of the recipe"
        )
    return found


@strategy("windows", trials=lambda recipe, p: len(windows_of(len(recipe.sources), p)) + p.keep)
def search(
    recipe: Recipe, parameters: WindowsParameters, tools: Tools, log: SearchRun
) -> SearchResult:
    """Try every window over the recipe's checkpoints; the best become trials.

    Raises:
        ConfigError: fewer than two checkpoints, or no window that fits.
        EvaluationError: no window has a finite score.
        MergeopsError: a baseline cannot be merged or scored.
    """
    check_sources("windows", recipe)
    found = windows_of(len(recipe.sources), parameters)
    order = oldest_first(recipe) or tuple(recipe.sources)
    alone = dataclasses.replace(
        recipe,
        base=None,
        base_adapter=None,
        method=MethodSpec("linear", get("linear").parameters()),
        sources={n: dataclasses.replace(recipe.sources[n], parameters={}) for n in order},
        rules=(),
    )
    settings = StudySettings(
        trials=len(found),
        objectives=(EVERYTHING,),
        racing=parameters.racing,
        margin=parameters.margin,
        keep=parameters.keep,
        # Long windows first: how long they last matters most (WSM), so a good one leads early.
        first=tuple({"window": w.name} for w in sorted(found, key=lambda w: -w.length)),
    )
    space = Windows(alone, found)
    sampler = open_sampler("random", space, 0)
    return run_study(alone, space, sampler, settings, tools, log)
