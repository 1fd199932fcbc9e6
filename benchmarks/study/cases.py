"""What is judged, in the order of what it tells: the report is made of what is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.study.judge import Case
from benchmarks.study.plan import RUNS, StudyRun
from benchmarks.study.questions import SKILLS
from benchmarks.study.results import Answers, Result, scores_of
from benchmarks.study.training import checkpoints_of, last_checkpoint
from mergeops.methods import get, names
from mergeops.scores import compare

KINDS = ("default", "without", "window", "search")
"""Of cases, beside the parents, which every other needs."""
BASE = "base"
ALL = "all"
"""The pool of all runs, failed ones included."""
SOUND = "sound"
"""The pool of the runs that are not shown to be worse than the base, by dev."""
FEW = "few"
"""The pool of the best run of each group, by dev."""
WINDOWS = (2, 4, 8)
REFERENCES = ("linear", "task_arithmetic", "ties")
"""Methods that are made of every pool, so that the others there have something to be held to."""
LEFT_OUT = {"passthrough": "it is its source"}
"""Methods that are not judged, and why."""


def parents(runs: Path, base: Path) -> Iterator[Case]:
    """The base, and what each run left."""
    yield Case(kind="parent", name=BASE, sources={BASE: base})
    for run in RUNS:
        yield Case(kind="parent", name=run.name, sources={run.name: last_checkpoint(runs, run)})


def merges(runs: Path, results: Sequence[Result], prompts: Mapping[str, Path]) -> Iterator[Case]:
    """Merges with defaults: what is quick of many runs, what decomposes matrices of few.

    Args:
        runs: what was trained.
        results: the parents' at least.
        prompts: skill -> a file of texts.
    """
    order = by_dev(results)
    everything = {run.name: last_checkpoint(runs, run) for run in RUNS}
    few = {run.name: everything[run.name] for run in best_of_groups(order)}
    sound = {run.name: everything[run.name] for run in not_worse(results)}
    quick = [m for m in names() if m not in LEFT_OUT and is_quick(m)]
    first = [m for m in REFERENCES if m in quick]
    others = [m for m in quick if m not in first]
    slow = [m for m in names() if m not in LEFT_OUT and not is_quick(m)]
    without = list(leave_one_out(everything, ALL))
    failed = {run.name for run in RUNS if run.failure}
    yield from (_default(method, ALL, everything, order) for method in first)
    # What failed runs give is a question of its own; what the others give can wait.
    yield from (case for case in without if case.name in failed)
    yield from windows(runs)
    yield from (_default(method, SOUND, sound, order) for method in (*first, *others))
    for method in (*REFERENCES, *slow):
        case = _default(method, FEW, few, order)
        if get(method).activations:
            own = {run.name: prompts[run.group] for run in RUNS if run.name in few}
            case = replace(case, prompts=own)
        yield case
    yield from (case for case in without if case.name not in failed)
    yield from leave_one_out(sound, SOUND)


def of_all_runs(runs: Path) -> Iterator[Case]:
    """The methods that are no references, of all runs: what ruined runs do to each."""
    everything = {run.name: last_checkpoint(runs, run) for run in RUNS}
    for method in names():
        # One source or two are the best by dev, of whatever pool.
        if method not in LEFT_OUT and is_quick(method) and get(method).max_sources is None:
            yield _default(method, ALL, everything, RUNS)


def windows(runs: Path) -> Iterator[Case]:
    """Means of the last checkpoints of the runs that kept some."""
    for run in RUNS:
        kept = checkpoints_of(runs, run)
        for length in WINDOWS:
            if 1 < length <= len(kept):
                sources = {path.name.replace("-", "_"): path for path in kept[-length:]}
                name = f"last {length}"
                yield Case(
                    kind="window", name=name, pool=run.name, method="linear", sources=sources
                )


def leave_one_out(sources: Mapping[str, Path], pool: str) -> Iterator[Case]:
    """The uniform soup of a pool without each of its runs."""
    for left_out in sources:
        rest = {name: path for name, path in sources.items() if name != left_out}
        yield Case(kind="without", name=left_out, pool=pool, method="linear", sources=rest)


def searches(
    runs: Path, results: Iterable[Result], methods: Sequence[str], trials: int
) -> Iterator[Case]:
    """A search over weights, and the density where there is one, of few runs."""
    few = {run.name: last_checkpoint(runs, run) for run in best_of_groups(by_dev(results))}
    for method in methods:
        axes = ["sources.*.weight: [0.0, 1.0]"]
        if "density" in {field.name for field in get(method).describe()}:
            axes.append("method.density: [0.1, 1.0]")
        yield Case(
            kind="search",
            name=method,
            pool=FEW,
            method=method,
            sources=few,
            search=(
                "strategy=optuna",
                f"search.trials={trials}",
                f"search.space={{method: {method}, {', '.join(axes)}}}",
                "search.earlier=0",
                "tracking.heat_maps=false",
            ),
        )


def searchable() -> tuple[str, ...]:
    """Methods that a search may vary: quick ones of any number of sources, cheap to draw again."""
    found = [m for m in names() if is_quick(m) and get(m).max_sources is None]
    first = [m for m in REFERENCES if m in found]
    return (*first, *(m for m in found if m not in first and "weight" in get(m).source_parameters))


def planned_kinds() -> dict[str, tuple[int, str]]:
    """Kind of result -> how many there are to be, and what they are in words."""
    methods = [name for name in names() if name not in LEFT_OUT]
    of_many = [name for name in methods if is_quick(name) and get(name).max_sources is None]
    kept = [run for run in RUNS if run.checkpoints > 1]
    return {
        "default": (
            len(methods) + len(of_many) + len(REFERENCES),
            "merges with defaults",
        ),
        "without": (2 * len(RUNS), "soups that leave a run out, at most"),
        "window": (
            sum(length <= run.checkpoints for run in kept for length in WINDOWS),
            "windows of checkpoints",
        ),
        "search": (len(searchable()), "searches"),
    }


def is_quick(method: str) -> bool:
    """Whether it neither decomposes matrices nor reads prompts."""
    found = get(method)
    return not found.takes_matrices and not found.activations


def not_worse(results: Iterable[Result]) -> list[StudyRun]:
    """The runs without those whose difference to the base on dev has an interval below zero."""
    parents = {r.name: scores_of(r.dev) for r in results if r.kind == "parent"}
    return [run for run in RUNS if compare(parents[run.name], parents[BASE]).high >= 0]


def by_dev(results: Iterable[Result]) -> list[StudyRun]:
    """The runs, best on dev first."""
    scores = {r.name: mean(r.dev) for r in results if r.kind == "parent"}
    return sorted(RUNS, key=lambda run: -scores[run.name])


def best_of_groups(order: Sequence[StudyRun]) -> list[StudyRun]:
    """The first of each skill and of the mixed ones."""
    return [next(r for r in order if r.group == group) for group in ("mixed", *SKILLS)]


def mean(answers: Answers) -> float:
    """Share of right answers over the trained skills: every item counts the same."""
    text = "".join(answers[skill] for skill in SKILLS)
    return text.count("1") / len(text)


def _default(
    method: str, pool: str, sources: Mapping[str, Path], order: Sequence[StudyRun]
) -> Case:
    """With as many sources as the method takes, the best first."""
    most = get(method).max_sources
    if most is not None:
        pool = f"best {most}" if most > 1 else "best"
        ranked = [run.name for run in order if run.name in sources]
        sources = {name: sources[name] for name in ranked[:most]}
    return Case(kind="default", name=method, pool=pool, method=method, sources=sources)
