"""Registered and logged models as sources: models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID.

As in MLflow, ``latest`` or a stage may stand for the version: the newest of all, or of that stage.
A directory inside may follow: models:/NAME/3/model.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from mergeops.errors import SourceError
from mergeops.sources.checkpoints import CHECKPOINT_URI, EXTERNAL
from mergeops.sources.contents import Location
from mergeops.sources.find_context import FindContext
from mergeops.sources.remote.directory import Directory, parts_of
from mergeops.sources.saves import find_checkpoint, why_none
from mergeops.sources.schemes import Scheme, scheme_of
from mergeops.sources.training_runs import TrainingRuns
from mergeops.store import or_none, quoted

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

# A version may be a copy of a copy (promotion between registries); a loop ends here.
MAX_COPIES = 8

LATEST = "Latest"
STAGES = ("None", "Staging", "Production", "Archived")

_LOGGED = re.compile(r"^m-[0-9a-f]{32}$")


@Scheme(
    ("models:/",),
    hints=("models:/NAME/VERSION", "models:/NAME@ALIAS"),
    order=20,
    short_name=lambda uri: "",
    takes_path=True,
)
def find(uri: str, context: FindContext) -> Location:
    """The checkpoint that a model's URI names.

    Raises:
        SourceError: no such model, version or alias, or it holds no checkpoint.
        TrackingError: the server refuses.
    """
    runs = context.training_runs()
    name, _, rest = uri.removeprefix("models:/").lstrip("/").partition("/")
    if not name:
        raise _malformed(uri)
    if _LOGGED.match(name):
        return _logged(uri, name, rest, runs)
    if "@" in name:
        name, alias = name.split("@", 1)
        version = _by_alias(uri, name, alias, runs)
    else:
        number, _, rest = rest.partition("/")
        if not number:
            raise _malformed(uri)
        version = _by_number(uri, name, number, runs)
    location = _follow(uri, version, rest, context)
    return dataclasses.replace(location, registered=f"{version.name}/{version.version}")


def _follow(uri: str, version: ModelVersion, rest: str, context: FindContext) -> Location:
    """The checkpoint that a version was made from, whatever kind of source that is."""
    source = str(version.source)
    if context.copies > MAX_COPIES:
        raise SourceError(f"{uri}: its versions are copies of each other; none holds a checkpoint")
    origin = scheme_of(source)
    if origin.is_place:
        location = _inside(uri, context.training_runs().open(source), rest)
        return dataclasses.replace(location, run_id=str(version.run_id) if version.run_id else None)
    if _is_deleted(source, context.training_runs()):
        return _kept(uri, version, rest, context.training_runs())
    if origin.takes_path:
        return origin.find("/".join([source, *parts_of(rest)]), context.through_version())
    whole = origin.find(source, context.through_version())
    part = _inside(uri, whole.directory, rest)
    return dataclasses.replace(
        part, run_id=whole.run_id, model_id=whole.model_id, revision=whole.revision
    )


def _is_deleted(source: str, runs: TrainingRuns) -> bool:
    """Whether a version's source is a LoggedModel that is not there any more."""
    model_id = source.removeprefix("models:/")
    is_logged = _LOGGED.match(model_id) is not None
    return is_logged and or_none(lambda: runs.client.get_logged_model(model_id)) is None


def _kept(uri: str, version: ModelVersion, rest: str, runs: TrainingRuns) -> Location:
    """The files of a version whose LoggedModel was deleted, where the registry knows them still."""
    where = runs.client.get_model_version_download_uri(version.name, version.version)
    directory = runs.open(str(where)).inside(rest)
    location = find_checkpoint(directory)
    if location is None:
        raise SourceError(
            f"{uri}: its LoggedModel {version.source} was deleted, and {why_none(directory)}; use "
            "another version"
        )
    return dataclasses.replace(location, run_id=str(version.run_id) if version.run_id else None)


def _logged(uri: str, model_id: str, rest: str, runs: TrainingRuns) -> Location:
    model = or_none(lambda: runs.client.get_logged_model(model_id))
    if model is None:
        raise SourceError(f"{uri}: there is no LoggedModel {model_id} at {runs.shown}")
    if str(model.status) != "READY":
        raise SourceError(
            f"{uri} is {model.status}, not READY: its upload did not finish; use another checkpoint"
        )
    elsewhere = model.tags.get(CHECKPOINT_URI)
    if not elsewhere and model.tags.get(EXTERNAL) == "true":
        raise SourceError(
            f"{uri} is an external model and MLflow does not hold its weights; set its tag "
            f"{CHECKPOINT_URI} to where they are"
        )
    location = _inside(uri, runs.open(elsewhere or model.artifact_location), rest)
    return dataclasses.replace(location, run_id=model.source_run_id, model_id=model_id)


def _inside(uri: str, directory: Directory, rest: str) -> Location:
    directory = directory.inside(rest)
    location = find_checkpoint(directory)
    if location is None:
        raise SourceError(f"{uri}: {why_none(directory)}")
    return location


def _by_alias(uri: str, name: str, alias: str, runs: TrainingRuns) -> ModelVersion:
    version = or_none(lambda: runs.client.get_model_version_by_alias(name, alias))
    if version is None:
        aliases = ", ".join(sorted(_registered_aliases(uri, name, runs))) or "none"
        raise SourceError(f"{uri}: {name} has no alias {alias!r}; its aliases: {aliases}")
    return version


def _by_number(uri: str, name: str, number: str, runs: TrainingRuns) -> ModelVersion:
    stage = number.capitalize()
    if number.isdigit():
        version = or_none(lambda: runs.client.get_model_version(name, number))
        if version is not None:
            return version
    elif stage not in (LATEST, *STAGES):
        raise _malformed(uri)
    _registered_aliases(uri, name, runs)
    versions = list(runs.client.search_model_versions(f"name = {quoted(name)}"))
    fitting = [v for v in versions if stage in (LATEST, v.current_stage)]
    if fitting:
        return max(fitting, key=lambda version: int(version.version))
    newest = ", ".join(str(n) for n in sorted(int(v.version) for v in versions)[-10:]) or "none"
    of = f"in stage {stage}" if stage in STAGES else number
    raise SourceError(f"{uri}: {name} has no version {of}; its versions: {newest}")


def _registered_aliases(uri: str, name: str, runs: TrainingRuns) -> list[str]:
    model = or_none(lambda: runs.client.get_registered_model(name))
    if model is None:
        raise SourceError(f"{uri}: there is no registered model {name!r} at {runs.shown}")
    return list(model.aliases)


def _malformed(uri: str) -> SourceError:
    return SourceError(
        f"{uri} is no model URI; write models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID"
    )
