"""A real PostgreSQL from the wheel, for the tests of this directory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

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
def queue_server(short_folder: Path) -> Iterator[str]:
    """Its URI; each test queues jobs of its own."""
    place = ServicePlace(short_folder / "queue")
    place.make()
    embedded = EmbeddedDatabase(place.database)
    yield embedded.start()
    embedded.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test's jobs leave their marks."""
    path = tmp_path / "marks"
    path.mkdir()
    return path
