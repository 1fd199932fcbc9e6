"""Registered and logged models as sources: models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID.

A directory inside may follow: models:/NAME/3/model.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from mergeops.errors import SourceError, TrackingError
from mergeops.sources import contents, hub, runs
from mergeops.sources.checkpoints import CHECKPOINT_URI, EXTERNAL
from mergeops.sources.location import Location
from mergeops.sources.place import LocalPlace, Place, parts_of
from mergeops.sources.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SCHEME = "models:/"
# A version may be a copy of a copy (promotion between registries); a loop ends here.
MAX_COPIES = 8

_LOGGED = re.compile(r"^m-[0-9a-f]{32}$")


def find(uri: str, store: Store, copies: int = 0) -> Location:
    """The checkpoint that a model's URI names.

    Raises:
        SourceError: no such model, version or alias, or it holds no checkpoint.
        TrackingError: the server refuses.
    """
    name, _, rest = uri.removeprefix(SCHEME).lstrip("/").partition("/")
    if not name:
        raise _malformed(uri)
    if _LOGGED.match(name):
        return _logged(uri, name, rest, store)
    if "@" in name:
        name, alias = name.split("@", 1)
        version = _by_alias(uri, name, alias, store)
    else:
        number, _, rest = rest.partition("/")
        if not number:
            raise _malformed(uri)
        version = _by_number(uri, name, number, store)
    location = _follow(uri, version, rest, store, copies)
    return dataclasses.replace(location, registered=f"{version.name}/{version.version}")


def _follow(uri: str, version: ModelVersion, rest: str, store: Store, copies: int) -> Location:
    source = str(version.source)
    if copies > MAX_COPIES:
        raise SourceError(f"{uri}: its versions are copies of each other; none holds a checkpoint")
    if source.startswith(SCHEME):
        return find("/".join([source, *parts_of(rest)]), store, copies + 1)
    if source.startswith(runs.SCHEME):
        return runs.find("/".join([source, *parts_of(rest)]), store)
    if source.startswith(hub.SCHEME):
        snapshot = hub.find(source)
        location = _inside(uri, LocalPlace(snapshot.path), rest)
        return dataclasses.replace(location, revision=snapshot.revision)
    location = _inside(uri, store.open(source), rest)
    return dataclasses.replace(location, run_id=str(version.run_id) if version.run_id else None)


def _logged(uri: str, model_id: str, rest: str, store: Store) -> Location:
    from mergeops.tracking.client import is_missing

    try:
        model = store.client.get_logged_model(model_id)
    except TrackingError as error:
        if not is_missing(error):
            raise
        raise SourceError(f"{uri}: there is no LoggedModel {model_id} at {store.shown}") from error
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
    location = _inside(uri, store.open(elsewhere or model.artifact_location), rest)
    return dataclasses.replace(location, run_id=model.source_run_id, model_id=model_id)


def _inside(uri: str, place: Place, rest: str) -> Location:
    place = place.inside(rest)
    found = contents.find_checkpoint(place)
    if found is None:
        raise SourceError(f"{uri}: {contents.examine(place).problem}")
    kind = contents.examine(found).kind
    assert kind is not None
    return Location(found, kind)


def _by_alias(uri: str, name: str, alias: str, store: Store) -> ModelVersion:
    from mergeops.tracking.client import is_missing

    try:
        return store.client.get_model_version_by_alias(name, alias)
    except TrackingError as error:
        if not is_missing(error):
            raise
        aliases = ", ".join(sorted(_registered_aliases(uri, name, store))) or "none"
        raise SourceError(
            f"{uri}: {name} has no alias {alias!r}; its aliases: {aliases}"
        ) from error


def _by_number(uri: str, name: str, number: str, store: Store) -> ModelVersion:
    from mergeops.tracking.client import is_missing
    from mergeops.tracking.keys import quoted

    if number != "latest" and not number.isdigit():
        raise _malformed(uri)
    try:
        if number != "latest":
            return store.client.get_model_version(name, number)
    except TrackingError as error:
        if not is_missing(error):
            raise
    _registered_aliases(uri, name, store)
    versions = list(store.client.search_model_versions(f"name = {quoted(name)}"))
    if number == "latest" and versions:
        return max(versions, key=lambda version: int(version.version))
    there = ", ".join(str(n) for n in sorted(int(v.version) for v in versions)[-10:]) or "none"
    raise SourceError(f"{uri}: {name} has no version {number}; its versions: {there}")


def _registered_aliases(uri: str, name: str, store: Store) -> list[str]:
    from mergeops.tracking.client import is_missing

    try:
        return list(store.client.get_registered_model(name).aliases)
    except TrackingError as error:
        if not is_missing(error):
            raise
        raise SourceError(
            f"{uri}: there is no registered model {name!r} at {store.shown}"
        ) from error


def _malformed(uri: str) -> SourceError:
    return SourceError(
        f"{uri} is no model URI; write models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID"
    )
