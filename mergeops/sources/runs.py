"""Training runs as sources: runs:/ID, runs:/ID/checkpoint-N, runs:/ID/ARTIFACT_PATH."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from mergeops.errors import SourceError, TrackingError
from mergeops.sources.checkpoints import CHECKPOINT_URI, CheckpointChoice, Search
from mergeops.sources.contents import Location, check_whole, examine, find_checkpoint
from mergeops.sources.find_context import FindContext
from mergeops.sources.remote.directory import Directory, parts_of
from mergeops.sources.schemes import Scheme
from mergeops.sources.training_runs import TrainingRuns

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

# The trainer's own numbers, and how often it logs them.
COMPARED = ("loss", "eval_loss")


@Scheme(("runs:/",), hints=("runs:/ID",), order=10, short_name=lambda uri: "", takes_path=True)
def find(uri: str, context: FindContext) -> Location:
    """The checkpoint that a run's URI names; the best one where it names none.

    Raises:
        SourceError: no such run, or no whole checkpoint; says what was looked at.
        TrackingError: the server refuses.
    """
    store = context.training_runs()
    run_id, _, path = uri.removeprefix("runs:/").lstrip("/").partition("/")
    if not run_id:
        raise SourceError(f"{uri} names no run; write runs:/RUN_ID or runs:/RUN_ID/checkpoint-N")
    path = "/".join(parts_of(path))
    run = store.run(run_id)
    models = list(store.models_of(run.info.experiment_id, run_id))
    search = Search(store, run, models, lambda state: written_by(store, run, state))
    if not path:
        choice = search.best()
        if choice is None:
            raise SourceError(f"{uri}: {no_checkpoint(search)}")
    else:
        choice = search.named(path)
        if choice is None:
            return _artifact(uri, path, store, run, search)
    return Location(
        choice.candidate.directory,
        choice.contents,
        run_id=run_id,
        model_id=choice.candidate.model_id or adopted_model(choice, models),
    )


def no_checkpoint(search: Search) -> str:
    """Why a run has no usable checkpoint, and the way out."""
    if search.problems:
        more = len(search.problems) - 2
        shown = "; ".join(dict.fromkeys(search.problems[:2]))
        return shown + (f" (and {more} more)" if more > 0 else "")
    hub = search.run.data.params.get("hub_model_id")
    if hub and hub != "None":
        return f"it left no checkpoint in MLflow or in reach; it was pushed to hf://{hub}"
    return (
        "it left no checkpoint: no LoggedModel, no artifact, and no output_dir among its params; "
        f"set the run's tag {CHECKPOINT_URI} to where its checkpoint is"
    )


def written_by(store: TrainingRuns, run: Run, state: dict[str, Any]) -> bool:
    """Whether a checkpoint's trainer state may be this run's.

    Where both have a loss at the same step, the losses are equal, and the state does not go on
    after the run's last step, as that of a later run does which resumed from this one.
    """
    entries = [e for e in state.get("log_history") or [] if isinstance(e, dict)]
    for key in COMPARED:
        saved = {e["step"]: e[key] for e in entries if key in e and "step" in e}
        if not saved or key not in run.data.metrics:
            continue
        try:
            history = store.client.get_metric_history(run.info.run_id, key)
        except TrackingError:
            continue
        last = max(metric.step for metric in history) if history else 0
        # One more: the log of a killed run's last step may not have been sent.
        if sum(step > last for step in saved) > 1:
            return False
        for metric in history:
            value = saved.get(metric.step)
            if value is not None and not _equal(float(value), float(metric.value)):
                return False
    return True


def adopted_model(choice: CheckpointChoice, models: list[LoggedModel]) -> str | None:
    """The external LoggedModel that adopt made of this checkpoint."""
    shown = choice.candidate.directory.shown
    for model in models:
        if model.tags.get(CHECKPOINT_URI) == shown:
            return str(model.model_id)
    return None


def _equal(ours: float, theirs: float) -> bool:
    # A store keeps infinity as the largest double.
    if not math.isfinite(ours) or not math.isfinite(theirs) or abs(theirs) > 1e308:
        return True
    return math.isclose(ours, theirs, rel_tol=1e-9)


def _artifact(uri: str, path: str, store: TrainingRuns, run: Run, search: Search) -> Location:
    broken = [p for p in search.problems if path in p]
    first, _, rest = path.partition("/")
    by_name = [m for m in search.models if m.name == first]
    roots: list[tuple[Directory, str | None]] = [
        (store.open(m.artifact_location).inside(rest), m.model_id) for m in by_name
    ]
    roots.append((store.open(run.info.artifact_uri).inside(path), None))
    for directory, model_id in roots:
        location = find_checkpoint(directory)
        if location is not None:
            assert location.contents.kind is not None
            check_whole(location.directory, location.contents.kind)
            return dataclasses.replace(location, run_id=run.info.run_id, model_id=model_id)
    if broken:
        raise SourceError(f"{uri}: {broken[0]}")
    for directory, entries in [(root, root.entries()) for root, _ in roots]:
        if entries:
            raise SourceError(f"{uri}: {examine(directory, entries).problem}")
    names = search.names()
    listed = f"it has {', '.join(names)}" if names else no_checkpoint(search)
    raise SourceError(f"{uri}: the run has no checkpoint or artifact {path!r}; {listed}")
