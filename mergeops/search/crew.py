"""Who tries out the candidates of a study: this process, one after the other."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from mergeops.errors import ConfigError, EvaluationError, MergeError
from mergeops.recipe import Recipe
from mergeops.search.bench import Bench, Candidate, Way


@dataclass(frozen=True)
class Job:
    """A candidate to be tried out."""

    key: int
    """The study's own number for it."""
    label: str
    recipe: Recipe
    way: Way


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    key: int
    candidate: Candidate | None
    """None where it could not be merged or scored."""
    reason: str = ""
    """Why it could not."""


class Crew(Protocol):
    """Tries out candidates, as many at a time as it has workers."""

    workers: int

    def submit(self, job: Job) -> None:
        """Have a candidate tried out."""

    def next(self) -> Outcome:
        """The next that is done, in whatever order.

        Raises:
            MergeopsError: what would stop every candidate.
        """


class Alone:
    """One candidate after the other, in this process."""

    workers = 1

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Have a candidate tried out, when ``next`` is called."""
        self._jobs.append(job)

    def next(self) -> Outcome:
        """Try out the first that was submitted."""
        job = self._jobs.popleft()
        try:
            return Outcome(job.key, self._bench.try_out(job.label, job.recipe, job.way))
        except (ConfigError, MergeError, EvaluationError) as error:
            return Outcome(job.key, None, str(error))
