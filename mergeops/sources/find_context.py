"""What a scheme's finder may use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from mergeops.sources.training_runs import TrainingRuns


@dataclass(frozen=True, kw_only=True)
class FindContext:
    """Handed to every ``find`` of a scheme."""

    training_runs: Callable[[], TrainingRuns]
    """Reaches the MLflow that holds the training runs, once; it may raise TrackingError."""
    code: bool = False
    """Whether the code that a repository carries is wanted, too."""
    pickled: bool = True
    """Whether pickled weights will do; they are converted."""
    copies: int = 0
    """How many versions of registered models led here."""

    def through_version(self) -> FindContext:
        """For the source of a registered model's version: its safetensors alone."""
        return dataclasses.replace(self, code=False, pickled=False, copies=self.copies + 1)
