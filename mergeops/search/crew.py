"""Who tries out the candidates of a study: this process, or the workers of an executor.

A worker keeps its model and its open sources from one candidate to the next. What it needs to know
of the race are the leaders, whose scores are kept in the study's folder; what it found is kept
there, too. So a worker that dies costs the answers of its own candidate since its last stage.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from mergeops.errors import ConfigError, EvaluationError, MergeError
from mergeops.executors import (
    Desk,
    Executor,
    Failed,
    Finished,
    Lost,
    Started,
    Unit,
    UnitError,
    WorkLog,
    show,
)
from mergeops.progress import Progress
from mergeops.recipe import Recipe
from mergeops.scores import Comparison
from mergeops.search.bench import Bench, Candidate, Cost, Way
from mergeops.search.objectives import Limit, Objective
from mergeops.search.racing import Race, RaceVerdict, Stages
from mergeops.store import connect_to_server
from mergeops.tools import Tools

REFERENCE = "reference"
"""Under which the scores are kept that limits are counted from."""


@dataclass(frozen=True)
class Assignment:
    """A candidate to be tried out."""

    key: int
    """The study's own number for it."""
    label: str
    recipe: Recipe
    way: Way


@dataclass(frozen=True)
class TriedOut:
    """What became of a job."""

    key: int
    candidate: Candidate | None
    """None where it could not be merged or scored."""
    reason: str = ""
    """Why it could not."""
    log: str = ""
    """What another process logged until it could not."""
    worker: str = ""
    """Who tried it out; empty is this process."""
    began: float = 0.0
    """When a worker began with it, in seconds since the epoch."""
    seconds: float = 0.0
    """How long it took that worker."""


class Crew(Protocol):
    """Tries out candidates, as many at a time as it has workers."""

    @property
    def workers(self) -> int:
        """How many try out candidates."""

    @property
    def at_once(self) -> int:
        """How many candidates may be submitted and not yet done."""

    @property
    def worker_seconds(self) -> float:
        """Time of all workers together, of each since its first candidate."""

    def submit(self, job: Assignment) -> None:
        """Have a candidate tried out."""

    def next(self) -> TriedOut:
        """The next that is done, in whatever order.

        Raises:
            MergeopsError: what would stop every candidate.
        """


class WorkerTime:
    """Counts the time of workers, who may become more and fewer."""

    def __init__(self) -> None:
        self._counted = 0.0
        self._until: float | None = None

    def until_now(self, workers: int) -> float:
        """Seconds of all since this was first called, with so many since it was called last."""
        now = time.monotonic()
        self._counted += workers * (now - (self._until or now))
        self._until = now
        return self._counted


class Alone:
    """One candidate after the other, in this process."""

    workers = at_once = 1

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._jobs: deque[Assignment] = deque()
        self._time = WorkerTime()

    @property
    def worker_seconds(self) -> float:
        """See ``Crew``."""
        return self._time.until_now(1)

    def submit(self, job: Assignment) -> None:
        """Have a candidate tried out, when ``next`` is called."""
        self._time.until_now(1)
        self._jobs.append(job)

    def next(self) -> TriedOut:
        """Try out the first that was submitted."""
        job = self._jobs.popleft()
        try:
            return TriedOut(job.key, self._bench.try_out(job.label, job.recipe, job.way))
        except (ConfigError, MergeError, EvaluationError) as error:
            return TriedOut(job.key, None, str(error))


class Workers:
    """As many candidates at a time as an executor has workers.

    Args:
        bench: of the study; its race says what workers are told.
        executor: open.
    """

    work = "mergeops.search.crew:try_out"
    """What a worker calls."""

    def __init__(self, bench: Bench, executor: Executor) -> None:
        self._bench, self._executor = bench, executor
        self.workers = executor.workers
        # One more is ready, so that no worker waits while the sampler is told and asked.
        self.at_once = executor.workers + 1
        self._jobs: dict[str, Assignment] = {}
        self._begun: set[str] = set()
        self._work_log = WorkLog()
        self._time = WorkerTime()

    @property
    def worker_seconds(self) -> float:
        """See ``Crew``."""
        return self._time.until_now(len(self._begun))

    def submit(self, job: Assignment) -> None:
        """Give a candidate to the next worker that is free."""
        payload = payload_of(job, self._bench)
        unit = Unit.of(self.work, payload, job.label)
        self._jobs[unit.name] = job
        self._executor.submit(unit)

    def next(self) -> TriedOut:
        """What the next worker that is done found."""
        for event in self._executor.events():
            show(event, self._bench.tools.progress)
            self._work_log.note(event)
            if isinstance(event, Started):
                self._time.until_now(len(self._begun))
                self._begun.add(event.worker)
            elif isinstance(event, Lost):
                self._time.until_now(len(self._begun))
                self._begun.discard(event.worker)
            elif isinstance(event, Failed):
                if isinstance(event.error, ConfigError | MergeError | EvaluationError | UnitError):
                    return self._outcome(event, None, str(event.error), event.log)
                raise event.error
            elif isinstance(event, Finished):
                job = self._jobs[event.unit.name]
                return self._outcome(event, candidate_of(job, event.result, self._bench))
        raise AssertionError("nothing was submitted that is not done")

    def _outcome(
        self, event: Finished | Failed, candidate: Candidate | None, reason: str = "", log: str = ""
    ) -> TriedOut:
        job, span = self._jobs.pop(event.unit.name), self._work_log.spans[-1]
        began, took = span["began"], span["seconds"]
        return TriedOut(job.key, candidate, reason, log, event.worker, began, took)


def payload_of(job: Assignment, bench: Bench) -> dict[str, Any]:
    """What ``try_out`` is given, as JSON types."""
    recipe = job.recipe.to_dict()
    recipe["output"]["dir"] = str(bench.tools.work_dir.absolute())
    # Who tries it out does so itself.
    recipe.pop("executor", None)
    return {
        "key": job.key,
        "label": job.label,
        "recipe": recipe,
        "way": asdict(job.way),
        "folder": str(bench.folder.absolute()),
        "race": _described(bench.race),
    }


def candidate_of(job: Assignment, found: Mapping[str, Any], bench: Bench) -> Candidate:
    """What another process found, whose scores are kept in the study's folder."""
    kept, cost = bench.kept(found["plan_digest"])
    bench.cost.add(Cost(**found["spent"]))
    state, looks, leader, reason = found["verdict"]
    return Candidate(
        label=job.label,
        recipe=job.recipe,
        plan_digest=found["plan_digest"],
        stages={share: kept[share] for share in found["shares"]},
        verdict=RaceVerdict(state, tuple(Comparison(**look) for look in looks), leader, reason),
        cost=cost,
    )


def try_out(payload: Mapping[str, Any], place: Desk) -> dict[str, Any]:
    """What a worker does: try out one candidate, with what it has open from those before.

    Args:
        payload: as ``Workers.submit`` writes it.
        place: of the worker.

    Returns:
        The plan's digest, the verdict, the stages that were asked and what this took.
    """
    recipe, folder = Recipe.from_dict(payload["recipe"]), Path(payload["folder"])
    bench: Bench | None = place.kept.get(str(folder))
    if bench is None:
        # Nothing is logged by workers.
        tracking = connect_to_server(recipe.tracking)
        tools = Tools(recipe, Progress(quiet=True), tracking=tracking)
        bench = Bench(tools, folder, Race(shares=(1.0,), margin=0.0, alpha=0.5))
        place.kept[str(folder)] = bench
    bench.race = _race(payload["race"], bench, place.kept.setdefault(f"leaders of {folder}", {}))
    before = dataclasses.replace(bench.cost)
    candidate = bench.try_out(payload["label"], recipe, Way(**payload["way"]))
    verdict = candidate.verdict
    return {
        "plan_digest": candidate.plan_digest,
        "verdict": [
            verdict.state,
            [asdict(look) for look in verdict.looks],
            verdict.leader,
            verdict.reason,
        ],
        "shares": sorted(candidate.stages),
        "spent": {
            name: value - getattr(before, name) for name, value in asdict(bench.cost).items()
        },
    }


def _described(race: Race) -> dict[str, Any]:
    """A race as JSON types; the scores of leaders and reference are kept by name."""
    return {
        "shares": list(race.shares),
        "margin": race.margin,
        "alpha": race.alpha,
        "objectives": [[each.name, each.tasks] for each in race.objectives],
        "limits": [[each.task, each.least, each.tasks] for each in race.limits],
        "leaders": list(race.leaders),
    }


def _race(raw: Mapping[str, Any], bench: Bench, known: dict[str, Stages]) -> Race:
    def stages(name: str) -> Stages:
        if name not in known:
            known[name] = bench.kept(name)[0]
        return known[name]

    return Race(
        shares=tuple(raw["shares"]),
        margin=raw["margin"],
        alpha=raw["alpha"],
        objectives=tuple(
            Objective(name, None if tasks is None else tuple(tasks))
            for name, tasks in raw["objectives"]
        ),
        limits=tuple(Limit(task, least, tuple(own)) for task, least, own in raw["limits"]),
        reference=stages(REFERENCE) if raw["limits"] else {},
        leaders={name: stages(name) for name in raw["leaders"]},
    )
