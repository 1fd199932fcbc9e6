"""What the runs of an MLflow experiment left that can be merged, whatever became of the runs."""

from __future__ import annotations

import dataclasses
import difflib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergeops.errors import SourceError, TrackingError
from mergeops.settings import TrackingSpec
from mergeops.sources import facts
from mergeops.sources.checkpoints import Choice, Search
from mergeops.sources.contents import Kind
from mergeops.sources.logged_config import OUTPUT_PARAMS
from mergeops.sources.path_map import moved
from mergeops.sources.runs import no_checkpoint, written_by
from mergeops.sources.store import Store, open_store

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

RUNS_PER_PAGE = 1000
# The database and the server answer one another's questions meanwhile.
WORKERS = 8

Tick = Callable[[int, int], None]
"""Called with (runs done, runs so far found)."""


@dataclass(frozen=True)
class Found:
    """One run of the experiment and what it left."""

    run_id: str
    run_name: str
    status: str
    """FINISHED, FAILED, KILLED or RUNNING."""
    problem: str | None = None
    """Why it cannot be merged, and the way out; None where it can."""
    uri: str | None = None
    """What a recipe writes: runs:/ID/checkpoint-N."""
    checkpoint: str | None = None
    """Where the checkpoint is: a path, or a URI without credentials."""
    kind: Kind | None = None
    step: int | None = None
    """Optimiser step of the checkpoint."""
    size_bytes: int = 0
    """Of its safetensors files; 0 where the store does not say."""
    base: str | None = None
    """The model that was fine-tuned: a directory, or a hub id."""
    architectures: tuple[str, ...] = ()
    shape: Mapping[str, int] = field(default_factory=dict)
    """vocab_size, hidden_size, num_hidden_layers, ..."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """eval_loss (at this checkpoint), eval_loss_best and eval_loss_last of the run, train loss."""
    model_id: str | None = None
    """The run's own LoggedModel of the checkpoint, where the trainer logged one."""
    found_by: Mapping[str, str] = field(default_factory=dict)
    """Fact -> where it was read."""
    skipped: tuple[str, ...] = ()
    """What is wrong with checkpoints that were passed over."""

    def row(self) -> dict[str, Any]:
        """As JSON types, for a table or ``--json``."""
        row = dataclasses.asdict(self)
        row["architectures"] = list(self.architectures)
        row["skipped"] = list(self.skipped)
        return row


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
        progress: called with (runs done, runs in all).

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
    runs = _runs(store, experiment_id, filter_string)
    if not runs:
        why = f" that match {filter_string!r}" if filter_string else ""
        raise SourceError(f"experiment {name!r} at {store.shown} has no runs{why}")
    models: dict[str, list[LoggedModel]] = defaultdict(list)
    for model in store.models_of(experiment_id):
        if model.source_run_id:
            models[model.source_run_id].append(model)
    done = 0
    looked: list[tuple[Found, Choice | None]] = []
    shared = _shared_directories(store, runs)

    def look(run: Run) -> tuple[Found, Choice | None]:
        run_id = run.info.run_id
        return _look(store, run, models.get(run_id, []), is_shared=run_id in shared)

    with ThreadPoolExecutor(WORKERS) as pool:
        for one in pool.map(look, runs):
            looked.append(one)
            done += 1
            if progress is not None:
                progress(done, len(runs))
    return Experiment(
        name,
        experiment_id,
        tuple(_without_stolen(runs, looked)),
        {run_id: tuple(owned) for run_id, owned in models.items()},
        {run.info.run_id: _outputs(run) for run in runs},
    )


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


def _runs(store: Store, experiment_id: str, filter_string: str | None) -> list[Run]:
    runs: list[Run] = []
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
        runs += [run for run in page if not run.data.tags.get("mergeops.role")]
        token = page.token
        if not token:
            return runs


def _shared_directories(store: Store, runs: Sequence[Run]) -> set[str]:
    """Ids of the runs that were given the same output directory as another."""
    by_directory: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for key in OUTPUT_PARAMS:
            if run.data.params.get(key):
                directory = moved(run.data.params[key], store.path_map).rstrip("/")
                by_directory[directory].add(run.info.run_id)
    return {one for sharing in by_directory.values() if len(sharing) > 1 for one in sharing}


def _look(
    store: Store, run: Run, models: Sequence[LoggedModel], is_shared: bool
) -> tuple[Found, Choice | None]:
    known = Found(
        run_id=run.info.run_id,
        run_name=str(run.info.run_name or run.info.run_id[:8]),
        status=str(run.info.status),
        metrics=facts.metrics(run, {}, None),
    )
    check = (lambda state: written_by(store, run, state)) if is_shared else None
    search = Search(store, run, models, check)
    try:
        choice = search.best()
        if choice is None:
            return dataclasses.replace(known, problem=no_checkpoint(search)), None
        return _describe(store, run, known, choice), choice
    except SourceError as error:
        return dataclasses.replace(known, problem=str(error)), None


def _describe(store: Store, run: Run, known: Found, choice: Choice) -> Found:
    candidate = choice.candidate
    base = facts.base(store, run, choice)
    architecture = facts.architecture(run, choice, base)
    provenance = {"checkpoint": f"{candidate.found_by}; {choice.why}", "kind": "files"}
    if base is not None:
        provenance["base"] = base.found_by
    provenance["architectures"] = architecture.found_by
    return dataclasses.replace(
        known,
        uri="/".join([f"runs:/{known.run_id}", *([candidate.name] if candidate.name else [])]),
        checkpoint=candidate.place.shown,
        kind=choice.kind,
        step=choice.step,
        size_bytes=choice.contents.size_bytes,
        base=base.path if base else None,
        architectures=architecture.architectures,
        shape=architecture.shape,
        metrics=facts.metrics(run, choice.state, choice.step),
        model_id=candidate.model_id,
        found_by=provenance,
        skipped=choice.skipped,
    )


def _without_stolen(
    runs: Sequence[Run], looked: Sequence[tuple[Found, Choice | None]]
) -> list[Found]:
    """One checkpoint in a shared output directory is the last run's, where the losses do not say
    whose it is (a repetition of the same training, or no trainer state)."""
    claims: dict[str, list[int]] = defaultdict(list)
    for i, (found, choice) in enumerate(looked):
        if choice is not None and choice.candidate.in_output_dir:
            claims[str(found.checkpoint)].append(i)
    result = [found for found, _ in looked]
    for path, claimants in claims.items():
        owner = max(claimants, key=lambda i: int(runs[i].info.start_time or 0))
        later = runs[owner].info
        for i in claimants:
            if i != owner:
                result[i] = Found(
                    result[i].run_id,
                    result[i].run_name,
                    result[i].status,
                    f"its output directory was used again by run {later.run_name} "
                    f"({later.run_id}), which wrote {path}",
                    metrics=result[i].metrics,
                )
    return result


def _outputs(run: Run) -> frozenset[str]:
    outputs = run.outputs.model_outputs if run.outputs else []
    return frozenset(str(output.model_id) for output in outputs or [])
