"""The server and the experiment are checked before any work, and errors are one line."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mergeops.errors import TrackingError
from mergeops.recipe.settings import TrackingSpec
from mergeops.store.client import no_patience, patience, translated
from mergeops.store.connection import EXPERIMENT_KIND, Tracking, chosen_uri, connect


@contextmanager
def answering(status: int, body: str, dropped: int = 0) -> Iterator[str]:
    """A web server that gives every request the same answer, and none to the first ``dropped``."""
    left = [dropped]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if left[0]:
                left[0] -= 1
                self.close_connection = True
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_the_recipe_decides_the_uri_then_the_environment_then_a_file_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert chosen_uri(TrackingSpec()) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000/")
    assert chosen_uri(TrackingSpec()) == "http://elsewhere:5000"
    assert chosen_uri(TrackingSpec(uri="sqlite:///own.db")) == f"sqlite:///{tmp_path}/own.db"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///data/mlruns", "ftp://host/x"])
def test_a_file_store_is_refused_with_the_way_out(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"keeps no runs in plain files: .*migrate-filestore"):
        connect(TrackingSpec(uri=uri))


def test_a_closed_port_is_one_line_at_once_and_shows_no_password() -> None:
    started = time.monotonic()
    uri = f"http://me:hunter2@127.0.0.1:{closed_port()}"
    with pytest.raises(TrackingError, match=r"cannot reach .* \(connection refused\)") as caught:
        connect(TrackingSpec(uri=uri))
    assert "hunter2" not in str(caught.value)
    assert "start it, or set tracking.uri or MLFLOW_TRACKING_URI" in str(caught.value)
    assert time.monotonic() - started < 2


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(
        TrackingError, match=r"http://no-such-host.invalid:5000 \(unknown host name"
    ):
        connect(TrackingSpec(uri="http://no-such-host.invalid:5000"))


def test_a_server_that_never_answers_is_given_up_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        started = time.monotonic()
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(TrackingError, match=r"cannot reach .* \(no answer in time\)"):
            connect(TrackingSpec(uri=uri, timeout_s=1))
        assert time.monotonic() - started < 8


@pytest.mark.parametrize("uri", ["postgresql://u:p@127.0.0.1:{}/db", "mysql://127.0.0.1:{}/db"])
def test_a_database_that_is_away_is_found_out_before_mlflow_retries(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"cannot reach .*127.0.0.1:.* \(connection refused\)"):
        connect(TrackingSpec(uri=uri.format(closed_port())))


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, "You are not authenticated", "denies access; set MLFLOW_TRACKING_USERNAME"),
        (403, "Invalid Host header - possible DNS rebinding", "start it with --allowed-hosts"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', "denies access"),
        (404, "<html>nginx</html>", "does not answer like an MLflow server"),
        (200, "<html>hello</html>", "does not answer like an MLflow server"),
    ],
)
def test_what_a_wrong_or_closed_server_says_becomes_advice(
    status: int, body: str, message: str
) -> None:
    with answering(status, body) as uri, pytest.raises(TrackingError, match=message) as caught:
        connect(TrackingSpec(uri=uri, timeout_s=5))
    assert "\n" not in str(caught.value)


def test_one_dropped_connection_is_tried_again_at_once_and_two_are_an_error() -> None:
    experiment = {"experiment_id": "7", "name": "e", "tags": [{"key": EXPERIMENT_KIND}]}
    body = json.dumps({"experiment": experiment})
    with answering(200, body, dropped=1) as uri:
        assert connect(TrackingSpec(uri=uri, experiment="e")).experiment_id == "7"
    with (
        answering(200, body, dropped=2) as uri,
        pytest.raises(TrackingError, match=r"cannot reach .* \(connection lost\)"),
    ):
        connect(TrackingSpec(uri=uri, experiment="e"))


def test_a_missing_or_locked_directory_of_a_sqlite_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="the directory .*/nowhere does not exist"):
        connect(TrackingSpec(uri=f"sqlite:///{tmp_path}/nowhere/mlflow.db"))


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("this is a text file and no database at all, whatever its name says")
    with pytest.raises(TrackingError, match="file is not a database") as caught:
        connect(TrackingSpec(uri=f"sqlite:///{path}"))
    assert "\n" not in str(caught.value)


def test_the_experiment_is_made_once_with_its_artifacts_beside_the_database(
    tracking: Tracking, spec: TrackingSpec
) -> None:
    experiment = tracking.client.get_experiment(tracking.experiment_id)
    store = Path(tracking.uri.removeprefix("sqlite:///")).parent
    assert experiment.artifact_location == (store / "mlartifacts" / "merges").as_uri()
    assert experiment.tags[EXPERIMENT_KIND] == "custom_model_development"
    assert connect(spec).experiment_id == tracking.experiment_id


def test_a_kind_that_the_user_gave_the_experiment_stays(
    tracking: Tracking, spec: TrackingSpec
) -> None:
    client, experiment = tracking.client, tracking.experiment_id
    client.set_experiment_tag(experiment, EXPERIMENT_KIND, "finetuning")
    connect(spec)
    assert client.get_experiment(experiment).tags[EXPERIMENT_KIND] == "finetuning"


def test_a_deleted_experiment_says_how_to_restore_it(
    tracking: Tracking, spec: TrackingSpec
) -> None:
    tracking.client.delete_experiment(tracking.experiment_id)
    with pytest.raises(
        TrackingError, match=f"experiments restore --experiment-id {tracking.experiment_id}"
    ):
        connect(spec)


def test_an_experiment_that_another_process_made_meanwhile_is_used(
    tracking: Tracking, spec: TrackingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    real, asked = mlflow.MlflowClient.get_experiment_by_name, []

    def late(self: mlflow.MlflowClient, name: str) -> object:
        asked.append(name)
        return None if len(asked) == 1 else real(self, name)

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", late)
    assert connect(spec).experiment_id == tracking.experiment_id


@pytest.mark.parametrize(("timeout_s", "retries"), [(1, "1"), (5, "2"), (20, "3"), (120, "5")])
def test_later_requests_are_retried_for_about_the_timeout(
    timeout_s: int, retries: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Waits of 0, 4, 8, 16, 32 s before the retries.
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    patience(timeout_s)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == retries


def test_a_number_of_retries_that_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "9")
    patience(20)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "9"
    with no_patience(3):
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "9"


def test_a_full_disk_is_a_tracking_error_and_a_bug_stays_a_bug() -> None:
    with (
        pytest.raises(TrackingError, match=r"could not log artifact: .*No space left"),
        translated("sqlite:///x.db", "log artifact"),
    ):
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyError), translated("sqlite:///x.db", "log artifact"):
        raise KeyError("bug")


def test_who_only_reads_makes_no_experiment(spec: TrackingSpec) -> None:
    absent = dataclasses.replace(spec, experiment="absent")
    with pytest.raises(TrackingError, match="there is no experiment 'absent' at sqlite"):
        connect(absent, create=False)
    assert connect(spec).client.get_experiment_by_name("absent") is None
