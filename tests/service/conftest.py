"""A real PostgreSQL from the wheel, for the tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mergeops.service.embedded import EmbeddedDatabase
from mergeops.service.place import ServicePlace


@pytest.fixture(scope="session")
def queue_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URI; each test queues jobs of its own."""
    place = ServicePlace(tmp_path_factory.mktemp("service"))
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
