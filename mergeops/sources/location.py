"""Where a URI leads, before anything is fetched or hashed."""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.sources.contents import Kind
from mergeops.sources.place import Place


@dataclass(frozen=True)
class Location:
    """A checkpoint's directory and what MLflow or the hub know of it."""

    place: Place
    kind: Kind
    run_id: str | None = None
    model_id: str | None = None
    registered: str | None = None
    """NAME/VERSION."""
    revision: str | None = None
    """Commit of a hub repository."""
