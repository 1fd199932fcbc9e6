"""Merge and score as a user does: the recipe, the merge and the tasks are mergeops' own."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mergeops
from benchmarks.study.questions import SKILLS, TRANSFER
from benchmarks.study.results import Answers, Result, answers_of
from benchmarks.study.training import one_thread
from mergeops.api.recipes import as_recipe
from mergeops.errors import MergeopsError
from mergeops.methods import get
from mergeops.progress import Progress
from mergeops.tools import Tools

CONFIRM_SHARE = 0.67
"""Of each task's items: judging needs more than choosing."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model that is to be judged."""

    kind: str
    name: str
    sources: Mapping[str, Path]
    pool: str = ""
    method: str = ""
    """None: the one source is judged as it is."""
    prompts: Mapping[str, Path] = field(default_factory=dict)
    """Source -> what a method that reads prompts is given."""
    search: Sequence[str] = ()
    """Overrides of a search; none: the method with its defaults."""

    @property
    def key(self) -> tuple[str, str, str]:
        """As of the result."""
        return self.kind, self.name, self.pool


@dataclass(frozen=True)
class Place:
    """Where a study is made."""

    folder: Path
    """Absolute; merges are made below it and removed when they are judged."""
    base: Path
    """The model that all runs started from."""
    tasks: Path
    """Folder of the tasks, absolute."""
    asks_transfer: bool = True
    """Whether merges are asked the task that no run is trained on, as runs are."""


def judge_cases(place: Place, cases: Sequence[Case], at_once: int) -> Iterator[Result]:
    """Judge, in processes of one thread each; results come as they are there."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, fresh, _begin, (place,)) as pool:
        for ended in as_completed([pool.submit(_judge_here, case) for case in cases]):
            yield ended.result()


def _begin(place: Place) -> None:
    one_thread()
    _judges.append(Judge(place))


def _judge_here(case: Case) -> Result:
    return _judges[0].judge(case)


_judges: list[Judge] = []
"""The one of a worker process, which keeps the tasks loaded."""


class Judge:
    """Makes models, and asks them the questions.

    Args:
        place: where.
    """

    def __init__(self, place: Place) -> None:
        self.folder, self.base, self.tasks = place.folder, place.base, place.tasks
        self.asks_transfer = place.asks_transfer
        self._tools: dict[tuple[str, ...], Tools] = {}

    def judge(self, case: Case) -> Result:
        """Make a model and ask it; what cannot be made says why."""
        try:
            return self._search(case) if case.search else self._defaults(case)
        except MergeopsError as error:
            return Result(
                kind=case.kind,
                name=case.name,
                pool=case.pool,
                sources=tuple(case.sources),
                # The results are shown; where they were made is nobody's business.
                error=f"{type(error).__name__}: {error}".replace(str(self.folder), "DIR"),
            )

    def inspected(self, sources: Mapping[str, Path]) -> Result:
        """What ``mergeops inspect`` says of sources."""
        began = time.process_time()
        recipe = self._recipe(sources, "linear", {})
        total = mergeops.inspect(recipe, with_ranks=False).to_dict()["total"]
        return Result(
            kind="inspect",
            name="inspect",
            sources=tuple(sources),
            merge_cpu_s=round(time.process_time() - began, 1),
            details=total,
        )

    def _defaults(self, case: Case) -> Result:
        cpu, wall, written, read = 0.0, 0.0, 0, 0
        [path] = list(case.sources.values())[:1]
        if case.method:
            path = self.folder / "merges" / "_".join(case.key)
            shutil.rmtree(path, ignore_errors=True)
            cpu, wall = -time.process_time(), -time.monotonic()
            mergeops.merge(self._recipe(case.sources, case.method, case.prompts), path)
            cpu, wall = cpu + time.process_time(), wall + time.monotonic()
            inputs = [*case.sources.values(), *([self.base] if get(case.method).needs_base else [])]
            read, written = sum(map(_weight_bytes, inputs)), _weight_bytes(path)
        began = time.process_time()
        result = Result(
            kind=case.kind,
            name=case.name,
            pool=case.pool,
            sources=tuple(case.sources),
            dev={} if case.method else self._answers(path, "dev", SKILLS),
            held=self._held(path, with_transfer=self._asks_transfer(case)),
            merge_cpu_s=round(cpu, 1),
            merge_wall_s=round(wall, 1),
            score_cpu_s=round(time.process_time() - began, 1),
            bytes_read=read,
            bytes_written=written,
        )
        if case.method:
            shutil.rmtree(path)
        return result

    def _search(self, case: Case) -> Result:
        content = self._recipe(case.sources, case.method, {})
        began = time.process_time()
        found = mergeops.search(content, overrides=case.search)
        spent = time.process_time() - began
        best = found.best or found.trials[0]
        assert best.scores is not None
        return Result(
            kind=case.kind,
            name=case.name,
            pool=case.pool,
            sources=tuple(case.sources),
            dev=answers_of(best.scores),
            held=self._held(best.checkpoint, with_transfer=self._asks_transfer(case)),
            merge_cpu_s=round(found.report["cost"]["merge_seconds"], 1),
            score_cpu_s=round(spent, 1),
            bytes_read=found.report["cost"]["bytes_read"],
            bytes_written=found.report["cost"]["bytes_written"],
            details={
                "best": best.name,
                "baselines": found.report["baselines"],
                "cost": found.report["cost"],
                "trials": len(found.report["trials"]),
            },
        )

    def _asks_transfer(self, case: Case) -> bool:
        if case.kind == "parent":
            return True
        return self.asks_transfer and case.kind in ("default", "search")

    def _held(self, path: Path, *, with_transfer: bool) -> Answers:
        own = self._answers(path, "confirm", SKILLS)
        return {**own, **self._answers(path, "confirm", (TRANSFER,))} if with_transfer else own

    def _answers(self, path: Path, part: str, tasks: tuple[str, ...]) -> Answers:
        if tasks not in self._tools:
            content = {"evaluate": self._evaluate(tasks), **self._places()}
            self._tools[tasks] = Tools(as_recipe(content, (), None), Progress(quiet=True))
        return answers_of(self._tools[tasks].score(path.name, path, part))

    def _recipe(
        self,
        sources: Mapping[str, Path],
        method: str,
        prompts: Mapping[str, Path],
    ) -> dict[str, Any]:
        needs_base = get(method).needs_base
        given = {name: {"prompts": str(path)} for name, path in prompts.items()}
        return {
            **({"base": str(self.base)} if needs_base or not prompts else {}),
            "sources": {n: {"uri": str(path), **given.get(n, {})} for n, path in sources.items()},
            "method": method,
            "evaluate": self._evaluate(SKILLS),
            **self._places(),
        }

    def _evaluate(self, tasks: tuple[str, ...]) -> dict[str, Any]:
        return {
            "tasks": list(tasks),
            "include_path": str(self.tasks),
            "confirm_fraction": CONFIRM_SHARE,
        }

    def _places(self) -> dict[str, Any]:
        return {
            "output": {"dir": str(self.folder / "work")},
            "tracking": {"uri": f"sqlite:///{self.folder}/mlflow.db", "experiment": "study"},
        }


def _weight_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
