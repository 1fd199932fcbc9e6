"""Who a model comes from: merges, merges of merges, training runs and bases, as MLflow knows it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mergeops.errors import ConfigError, TrackingError
from mergeops.family import Member
from mergeops.tracking.ancestors import MODEL, Ancestors

if TYPE_CHECKING:
    from mergeops.tracking.connection import Tracking

_RUN = re.compile(r"^(?:runs:/)?([0-9a-f]{32})(?:/.*)?$")
_VERSION = re.compile(r"^models:/([^/@:]+)(?:/(\d+)|@([\w-]+))(?:/.*)?$")


def find_family(tracking: Tracking, uri: str) -> Member:
    """The family tree of what ``uri`` names.

    Args:
        uri: models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID, m-ID, runs:/ID or a run's id.

    Raises:
        ConfigError: it is written in another way.
        TrackingError: MLflow knows no such thing, or cannot be reached.
    """
    tree = Ancestors(tracking)
    if found := _VERSION.match(uri):
        return tree.of_named(*found.groups())
    if found := MODEL.match(uri):
        member = tree.of_model(found[1])
        if member is None:
            raise TrackingError(f"there is no LoggedModel {found[1]} at {tracking.shown_uri}")
        return member
    if found := _RUN.match(uri):
        run = tree.run(found[1])
        if run is None:
            raise TrackingError(f"there is no run {found[1]} at {tracking.shown_uri}")
        if run.data.tags.get("mergeops.role") == "search":
            raise TrackingError(f"run {found[1]} is a search, not a model; name one of its trials")
        return tree.of_run(run, ())
    raise ConfigError(
        f"{uri!r} names no model; write models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or "
        "runs:/ID"
    )
