"""One real MLflow server for the session, and one of its own for tests that kill it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow_server import Server
from tracking_case import Case, make_case

from mergeops.settings import TrackingSpec
from mergeops.tracking.connection import connect


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, template_database: Path) -> Iterator[Server]:
    """A server that is only ever asked."""
    running = Server(tmp_path_factory.mktemp("server"), template_database)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def mortal_server(tmp_path: Path, template_database: Path) -> Iterator[Server]:
    """A server that the test may stop and start."""
    running = Server(tmp_path / "server", template_database)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def served_case(checkpoint: Path) -> Callable[[Server], Case]:
    """A factory of whole trials against a server."""

    def make(server: Server) -> Case:
        spec = TrackingSpec(
            uri=server.uri, experiment="merges", registered_model="skills", timeout_s=5
        )
        return make_case(connect(spec), checkpoint)

    return make
