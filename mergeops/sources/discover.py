"""Every run of an MLflow experiment, and what it left that can be merged."""

from __future__ import annotations

import difflib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops.errors import SourceError, TrackingError
from mergeops.settings import TrackingSpec
from mergeops.sources.found import Found, look
from mergeops.sources.logged_config import OUTPUT_PARAMS
from mergeops.sources.path_map import moved
from mergeops.sources.run_note import OUTPUT_DIR_TAG
from mergeops.sources.store import Store, open_store

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
    found: tuple[Found, ...]
    """Newest run first."""
    models: Mapping[str, tuple[LoggedModel, ...]]
    """Run id -> its LoggedModels."""
    outputs: Mapping[str, frozenset[str]]
    """Run id -> ids of the models that it has as outputs."""


@dataclass(frozen=True)
class _Seen:
    # A run has 150 params; of ten thousand runs only this is kept.
    found: Found
    in_output_dir: bool
    started_ms: int
    directories: tuple[str, ...]
    outputs: frozenset[str]


def discover(
    experiment: str,
    *,
    filter_string: str | None = None,
    path_map: Mapping[str, str] | None = None,
    tracking_uri: str | None = None,
    progress: Tick | None = None,
) -> list[Found]:
    """Read every run of an experiment and find its best checkpoint.

    Args:
        experiment: its name.
        filter_string: an MLflow filter over runs, e.g. ``metrics.eval_loss < 2``.
        path_map: moved storage: prefix of a logged path -> where it is now.
        tracking_uri: default MLFLOW_TRACKING_URI.
        progress: called with (runs done, runs listed so far).

    Returns:
        One entry a run, newest first; ``problem`` says what is missing.

    Raises:
        SourceError: there is no such experiment, or it has no runs.
        TrackingError: MLflow cannot be reached, or refuses the filter.
    """
    store = open_store(TrackingSpec(uri=tracking_uri), path_map)
    return list(read_experiment(store, experiment, filter_string, progress).found)


def read_experiment(
    store: Store, name: str, filter_string: str | None = None, progress: Tick | None = None
) -> Experiment:
    """Read an experiment; see ``discover``."""
    experiment_id = _experiment_id(store, name)
    owned = models_by_run(store, experiment_id)
    seen = _look_at_all(store, _pages(store, experiment_id, filter_string), owned, progress)
    if not seen:
        why = f" that match {filter_string!r}" if filter_string else ""
        raise SourceError(f"experiment {name!r} at {store.shown} has no runs{why}")
    seen = _look_again_at_shared(store, seen, owned)
    return Experiment(
        name,
        experiment_id,
        tuple(_without_stolen(seen)),
        owned,
        {one.found.run_id: one.outputs for one in seen},
    )


def models_by_run(store: Store, experiment_id: str) -> dict[str, tuple[LoggedModel, ...]]:
    """Run id -> its LoggedModels."""
    models: dict[str, list[LoggedModel]] = defaultdict(list)
    for model in store.models_of(experiment_id):
        if model.source_run_id:
            models[model.source_run_id].append(model)
    return {run_id: tuple(of_run) for run_id, of_run in models.items()}


def _experiment_id(store: Store, name: str) -> str:
    found = store.client.get_experiment_by_name(name)
    if found is None:
        names = [e.name for e in store.client.search_experiments(max_results=1000)]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        listed = ", ".join(names[:10]) or "none"
        raise SourceError(
            f"there is no experiment {name!r} at {store.shown}; {hint}experiments: {listed}"
        )
    if found.lifecycle_stage == "deleted":
        raise SourceError(
            f"experiment {name!r} is deleted in MLflow; restore it with `mlflow experiments "
            f"restore --experiment-id {found.experiment_id}`"
        )
    return str(found.experiment_id)


def _pages(store: Store, experiment_id: str, filter_string: str | None) -> Iterator[list[Run]]:
    token = None
    while True:
        try:
            page: Any = store.client.search_runs(
                [experiment_id],
                filter_string or "",
                max_results=RUNS_PER_PAGE,
                page_token=token,
            )
        except TrackingError as error:
            if filter_string and token is None and "ilter" in str(error):
                raise TrackingError(
                    f"MLflow cannot read the filter {filter_string!r}; write e.g. "
                    "\"metrics.eval_loss < 2 and tags.team = 'nlp'\""
                ) from error
            raise
        # Merges and scored parents may be in the same experiment; they are no training runs.
        yield [run for run in page if not run.data.tags.get("mergeops.role")]
        token = page.token
        if not token:
            return


def _look_at_all(
    store: Store,
    pages: Iterator[list[Run]],
    models: Mapping[str, tuple[LoggedModel, ...]],
    progress: Tick | None,
) -> list[_Seen]:
    seen: list[_Seen] = []
    waiting: deque[Future[_Seen]] = deque()
    listed = 0

    def collect(*, wait: bool) -> None:
        while waiting and (wait or waiting[0].done()):
            seen.append(waiting.popleft().result())
            if progress is not None:
                progress(len(seen), listed)

    pool = ThreadPoolExecutor(WORKERS)
    try:
        for page in pages:
            listed += len(page)
            waiting.extend(pool.submit(_see, store, run, models) for run in page)
            collect(wait=False)
        collect(wait=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return seen


def _see(
    store: Store,
    run: Run,
    models: Mapping[str, tuple[LoggedModel, ...]],
    is_shared: bool = False,
) -> _Seen:
    found, choice = look(store, run, models.get(run.info.run_id, ()), is_shared)
    said = [run.data.tags.get(OUTPUT_DIR_TAG)]
    said += [run.data.params.get(key) for key in OUTPUT_PARAMS]
    outputs = run.outputs.model_outputs if run.outputs else []
    return _Seen(
        found,
        choice is not None and choice.candidate.in_output_dir,
        int(run.info.start_time or 0),
        tuple(moved(path, store.path_map).rstrip("/") for path in said if path),
        frozenset(str(output.model_id) for output in outputs or []),
    )


def _look_again_at_shared(
    store: Store, seen: Sequence[_Seen], models: Mapping[str, tuple[LoggedModel, ...]]
) -> list[_Seen]:
    """Ask of runs that were given one output directory, whose the checkpoints in it are."""
    sharing: dict[str, set[str]] = defaultdict(set)
    for one in seen:
        for directory in one.directories:
            sharing[directory].add(one.found.run_id)
    shared = {run_id for run_ids in sharing.values() if len(run_ids) > 1 for run_id in run_ids}
    return [
        _see(store, store.run(one.found.run_id), models, is_shared=True)
        if one.in_output_dir and one.found.run_id in shared
        else one
        for one in seen
    ]


def _without_stolen(seen: Sequence[_Seen]) -> list[Found]:
    """One checkpoint in a shared output directory is the last run's, where the losses do not say
    whose it is (a repetition of the same training, or no trainer state)."""
    owners: dict[str, _Seen] = {}
    for one in seen:
        place = str(one.found.checkpoint)
        known = owners.get(place)
        if one.in_output_dir and (known is None or one.started_ms > known.started_ms):
            owners[place] = one
    found = []
    for one in seen:
        owner = owners.get(str(one.found.checkpoint)) if one.in_output_dir else None
        if owner is None or owner is one:
            found.append(one.found)
            continue
        found.append(
            Found(
                one.found.run_id,
                one.found.run_name,
                one.found.status,
                f"its output directory was used again by run {owner.found.run_name} "
                f"({owner.found.run_id}), which wrote {one.found.checkpoint}",
                metrics=one.found.metrics,
            )
        )
    return found
