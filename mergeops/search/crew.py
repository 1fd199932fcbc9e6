"""Who tries out the candidates of a study: this process, or the workers of an executor.

A worker keeps its model and its open sources from one candidate to the next. What it needs to know
of the race are the leaders, whose scores are kept in the study's folder; what it found is kept
there, too. So a worker that dies costs the answers of its own candidate since its last stage.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from mergeops.errors import ConfigError, EvaluationError, MergeError
from mergeops.executors import Desk, Executor, Failed, Finished, Lost, Unit, UnitError
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


class Crew(Protocol):
    """Tries out candidates, as many at a time as it has workers."""

    workers: int

    def submit(self, job: Assignment) -> None:
        """Have a candidate tried out."""

    def next(self) -> TriedOut:
        """The next that is done, in whatever order.

        Raises:
            MergeopsError: what would stop every candidate.
        """


class Alone:
    """One candidate after the other, in this process."""

    workers = 1

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._jobs: deque[Assignment] = deque()

    def submit(self, job: Assignment) -> None:
        """Have a candidate tried out, when ``next`` is called."""
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

    def __init__(self, bench: Bench, executor: Executor) -> None:
        self._bench, self._executor = bench, executor
        self.workers = executor.workers
        self._jobs: dict[str, Assignment] = {}

    def submit(self, job: Assignment) -> None:
        """Give a candidate to the next worker that is free."""
        recipe = job.recipe.to_dict()
        recipe["output"]["dir"] = str(self._bench.tools.work_dir.absolute())
        # A worker does its work itself.
        recipe.pop("executor", None)
        payload = {
            "key": job.key,
            "label": job.label,
            "recipe": recipe,
            "way": asdict(job.way),
            "folder": str(self._bench.folder.absolute()),
            "race": _described(self._bench.race),
        }
        unit = Unit.of("mergeops.search.crew:try_out", payload, job.label)
        self._jobs[unit.name] = job
        self._executor.submit(unit)

    def next(self) -> TriedOut:
        """What the next worker that is done found."""
        for event in self._executor.events():
            if isinstance(event, Lost):
                self._bench.tools.progress.step(
                    f"{event.worker} is gone ({event.reason}); {event.unit} is tried out again"
                )
            elif isinstance(event, Failed):
                job = self._jobs.pop(event.unit.name)
                if isinstance(event.error, ConfigError | MergeError | EvaluationError | UnitError):
                    return TriedOut(job.key, None, str(event.error))
                raise event.error
            elif isinstance(event, Finished):
                job = self._jobs.pop(event.unit.name)
                return TriedOut(job.key, self._candidate(job, event.result))
        raise AssertionError("nothing was submitted that is not done")

    def _candidate(self, job: Assignment, result: Mapping[str, Any]) -> Candidate:
        kept, cost = self._bench.kept(result["plan_digest"])
        self._bench.cost.add(Cost(**result["spent"]))
        state, looks, leader, reason = result["verdict"]
        return Candidate(
            label=job.label,
            recipe=job.recipe,
            plan_digest=result["plan_digest"],
            stages={share: kept[share] for share in result["shares"]},
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
