"""A real PostgreSQL from the wheel, for the tests of this directory."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from mergeops.service.embedded import EmbeddedDatabase
from mergeops.service.place import ServicePlace


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A directory of its own below /tmp: a socket's path is short, and as root PostgreSQL runs as
    another user, whom pytest shuts out of its own directories."""
    with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def database_server(short_folder: Path) -> Iterator[str]:
    """Its URI."""
    place = ServicePlace(short_folder / "queue")
    place.make()
    embedded = EmbeddedDatabase(place.database)
    yield embedded.start()
    embedded.stop()


@pytest.fixture(scope="module")
def queue_server(database_server: str) -> str:
    """The URI of a database of the file's own, in which no other file's jobs wait."""
    name = f"queue_{uuid.uuid4().hex}"
    with psycopg.connect(database_server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return urlsplit(database_server)._replace(path=f"/{name}").geturl()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test's jobs leave their marks."""
    path = tmp_path / "marks"
    path.mkdir()
    return path
