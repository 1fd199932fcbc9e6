"""MLflow's databases of some kind, one for each directory that a test makes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Protocol

from support.postgres_server import Postgres

from mergeops.recipe.settings import TrackingSpec
from mergeops.store.connection import connect


class PlaceDatabases(Protocol):
    """Databases of one kind."""

    def uri(self, place: Path) -> str:
        """Of a directory's database."""

    def begin(self, place: Path, *, bare: bool = False) -> None:
        """Give a directory a database with nothing in it; a bare one lacks MLflow's tables."""

    def copy(self, place: Path, to: Path) -> None:
        """Give a copy of a directory a copy of its database."""

    def drop(self, place: Path) -> None:
        """Remove a directory's database."""


class SqliteFiles:
    """Files in the directories, which are copied and removed with these.

    Args:
        template: a database with nothing in it.
    """

    def __init__(self, template: Path) -> None:
        self._template = template

    def uri(self, place: Path) -> str:
        """See ``PlaceDatabases``."""
        return f"sqlite:///{place}/mlflow.db"

    def begin(self, place: Path, *, bare: bool = False) -> None:
        """See ``PlaceDatabases``."""
        if not bare:
            shutil.copy(self._template, place / "mlflow.db")

    def copy(self, place: Path, to: Path) -> None:
        """See ``PlaceDatabases``."""

    def drop(self, place: Path) -> None:
        """See ``PlaceDatabases``."""


class PostgresDatabases:
    """Databases of a server, each named after its directory."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        # MLflow takes seconds for its tables; a copy takes none.
        connect(TrackingSpec(uri=server.create("tables"), experiment="unused"))

    def uri(self, place: Path) -> str:
        """See ``PlaceDatabases``."""
        return self._server.uri(_name(place))

    def begin(self, place: Path, *, bare: bool = False) -> None:
        """See ``PlaceDatabases``."""
        if bare:
            self._server.create(_name(place))
        else:
            self._server.create(_name(place), "tables")

    def copy(self, place: Path, to: Path) -> None:
        """See ``PlaceDatabases``."""
        self._server.create(_name(to), _name(place))

    def drop(self, place: Path) -> None:
        """See ``PlaceDatabases``."""
        self._server.drop(_name(place))


def _name(place: Path) -> str:
    return "of_" + hashlib.sha256(str(place).encode()).hexdigest()[:16]
