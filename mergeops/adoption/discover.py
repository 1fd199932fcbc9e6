"""Every run of an MLflow experiment, and what it left that can be merged."""

from __future__ import annotations

import difflib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.adoption.found import FoundRun, look_at
from mergeops.errors import SourceError, TrackingError
from mergeops.sources import TrainingRuns
from mergeops.store import pages

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

RUNS_PER_PAGE = 1000
# Runs are looked at while the next page of them is read.
WORKERS = 8

Tick = Callable[[int, int], None]
"""Called with (runs done, runs listed so far)."""


@dataclass(frozen=True)
class Experiment:
    """What was read of an experiment."""

    name: str
    experiment_id: str
    found: tuple[FoundRun, ...]
    """Newest run first."""
    models: Mapping[str, tuple[LoggedModel, ...]]
    """Run id -> its LoggedModels."""
    outputs: Mapping[str, frozenset[str]]
    """Run id -> ids of the models that it has as outputs."""


@dataclass(frozen=True)
class _Look:
    """What is kept of a run that was looked at: of ten thousand runs 150 params each are much."""

    found: FoundRun
    in_output_dir: bool
    started_ms: int
    outputs: frozenset[str]


def read_experiment(
    store: TrainingRuns, name: str, filter_string: str | None = None, progress: Tick | None = None
) -> Experiment:
    """Read every run of an experiment and find its best checkpoint.

    Args:
        name: the experiment's.
        filter_string: an MLflow filter over runs, e.g. ``metrics.eval_loss < 2``.
        progress: called with (runs done, runs listed so far).

    Raises:
        SourceError: there is no such experiment, or it has no runs.
        TrackingError: MLflow cannot be reached, or refuses the filter.
    """
    experiment_id = _experiment_id(store, name)
    owned = models_by_run(store, experiment_id)
    runs = _runs_by_page(store, experiment_id, filter_string)
    looks = _look_at_all(store, runs, owned, progress)
    if not looks:
        why = f" that match {filter_string!r}" if filter_string else ""
        raise SourceError(f"experiment {name!r} at {store.shown} has no runs{why}")
    return Experiment(
        name,
        experiment_id,
        tuple(_without_stolen(looks)),
        owned,
        {look.found.run_id: look.outputs for look in looks},
    )


def models_by_run(store: TrainingRuns, experiment_id: str) -> dict[str, tuple[LoggedModel, ...]]:
    """Run id -> its LoggedModels."""
    models: dict[str, list[LoggedModel]] = defaultdict(list)
    for model in store.models_of(experiment_id):
        if model.source_run_id:
            models[model.source_run_id].append(model)
    return {run_id: tuple(of_run) for run_id, of_run in models.items()}


def _experiment_id(store: TrainingRuns, name: str) -> str:
    experiment = store.client.get_experiment_by_name(name)
    if experiment is None:
        names = [e.name for e in store.client.search_experiments(max_results=1000)]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        listed = ", ".join(names[:10]) or "none"
        raise SourceError(
            f"there is no experiment {name!r} at {store.shown}; {hint}experiments: {listed}"
        )
    if experiment.lifecycle_stage == "deleted":
        raise SourceError(
            f"experiment {name!r} is deleted in MLflow; restore it with `mlflow experiments "
            f"restore --experiment-id {experiment.experiment_id}`"
        )
    return str(experiment.experiment_id)


def _runs_by_page(
    store: TrainingRuns, experiment_id: str, filter_string: str | None
) -> Iterator[list[Run]]:
    wanted, most = filter_string or "", RUNS_PER_PAGE
    try:
        for page in pages(store.client.search_runs, [experiment_id], wanted, max_results=most):
            # Merges and scored parents may be in the same experiment; they are no training runs.
            yield [run for run in page if not run.data.tags.get("mergeops.role")]
    except TrackingError as error:
        if not filter_string or "ilter" not in str(error):
            raise
        raise TrackingError(
            f"MLflow cannot read the filter {filter_string!r}; write e.g. "
            "\"metrics.eval_loss < 2 and tags.team = 'nlp'\""
        ) from error


def _look_at_all(
    store: TrainingRuns,
    runs_by_page: Iterator[list[Run]],
    models: Mapping[str, tuple[LoggedModel, ...]],
    progress: Tick | None,
) -> list[_Look]:
    looks: list[_Look] = []
    waiting: deque[Future[_Look]] = deque()
    listed = 0

    def collect(*, wait: bool) -> None:
        while waiting and (wait or waiting[0].done()):
            looks.append(waiting.popleft().result())
            if progress is not None:
                progress(len(looks), listed)

    pool = ThreadPoolExecutor(WORKERS)
    try:
        for runs in runs_by_page:
            listed += len(runs)
            waiting.extend(pool.submit(_look, store, run, models) for run in runs)
            collect(wait=False)
        collect(wait=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return looks


def _look(store: TrainingRuns, run: Run, models: Mapping[str, tuple[LoggedModel, ...]]) -> _Look:
    found, choice = look_at(store, run, models.get(run.info.run_id, ()))
    outputs = run.outputs.model_outputs if run.outputs else []
    return _Look(
        found,
        choice is not None and choice.candidate.in_output_dir,
        int(run.info.start_time or 0),
        frozenset(str(output.model_id) for output in outputs or []),
    )


def _without_stolen(looks: Sequence[_Look]) -> list[FoundRun]:
    """One checkpoint in a shared output directory is the last run's, where the losses do not say
    whose it is (a repetition of the same training, or no trainer state)."""
    owners: dict[str | None, _Look] = {}
    for look in looks:
        owner = owners.get(look.found.checkpoint)
        if look.in_output_dir and (owner is None or look.started_ms > owner.started_ms):
            owners[look.found.checkpoint] = look
    runs = []
    for look in looks:
        run, owner = look.found, owners.get(look.found.checkpoint)
        if look.in_output_dir and owner is not None and owner is not look:
            run = FoundRun(
                run.run_id,
                run.run_name,
                run.status,
                f"its output directory was used again by run {owner.found.run_name} "
                f"({owner.found.run_id}), which wrote {run.checkpoint}",
                metrics=run.metrics,
            )
        runs.append(run)
    return runs
