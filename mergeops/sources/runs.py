"""Training runs as sources: runs:/ID, runs:/ID/checkpoint-N, runs:/ID/ARTIFACT_PATH."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mergeops.errors import SourceError
from mergeops.sources.checkpoint_choice import CheckpointChoice
from mergeops.sources.checkpoints import CHECKPOINT_URI, Search
from mergeops.sources.contents import Location, check_whole
from mergeops.sources.find_context import FindContext
from mergeops.sources.remote.directory import Directory, parts_of
from mergeops.sources.saves import find_checkpoint, why_none
from mergeops.sources.schemes import Scheme
from mergeops.sources.training_runs import TrainingRuns

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run


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
    search = Search(store, run, models)
    if not path:
        choice = search.best()
        if choice is None:
            raise SourceError(f"{uri}: {no_checkpoint(search)}")
    else:
        choice = search.named(path)
        if choice is None:
            return _artifact(uri, path, store, run, search)
    return dataclasses.replace(
        choice.location,
        run_id=run_id,
        model_id=choice.candidate.model_id or adopted_model(choice, models),
    )


def no_checkpoint(search: Search) -> str:
    """Why a run has no usable checkpoint, and the way out."""
    if search.problems:
        problems = list(dict.fromkeys(search.problems))
        more = len(problems) - 2
        return "; ".join(problems[:2]) + (f" (and {more} more)" if more > 0 else "")
    hub = search.run.data.params.get("hub_model_id")
    if hub and hub != "None":
        return f"it left no checkpoint in MLflow or in reach; it was pushed to hf://{hub}"
    held = sorted(search.artifacts)
    artifacts = f"none among its artifacts ({', '.join(held[:5])})" if held else "no artifact"
    return (
        f"it left no checkpoint: no LoggedModel, {artifacts}, and no output_dir among its params; "
        f"set the run's tag {CHECKPOINT_URI} to where its checkpoint is"
    )


def adopted_model(choice: CheckpointChoice, models: list[LoggedModel]) -> str | None:
    """The external LoggedModel that adopt made of this checkpoint."""
    shown = choice.directory.shown
    for model in models:
        if model.tags.get(CHECKPOINT_URI) == shown:
            return str(model.model_id)
    return None


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
            check_whole(location.directory, location.contents.kind)
            return dataclasses.replace(location, run_id=run.info.run_id, model_id=model_id)
    if broken:
        raise SourceError(f"{uri}: {broken[0]}")
    for directory, entries in [(root, root.entries()) for root, _ in roots]:
        if entries:
            raise SourceError(f"{uri}: {why_none(directory)}")
    names = search.names()
    listed = f"it has {', '.join(names)}" if names else no_checkpoint(search)
    raise SourceError(f"{uri}: the run has no checkpoint or artifact {path!r}; {listed}")
