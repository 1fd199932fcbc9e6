"""What an MLflow store says of a few things, as one digest, asked without MLflow's client.

Importing MLflow takes longer than all that a finished trial needs. Nothing is understood here: the
rows or answers are hashed, so that whoever hashed them before knows whether anything changed. Where
there is any doubt there is no digest, and MLflow itself is asked.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import sqlite3
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from mergeops.checkpoint import look_at
from mergeops.errors import TrackingError
from mergeops.recipe import TrackingSpec
from mergeops.store.address import chosen_uri
from mergeops.store.client import chosen_registry
from mergeops.store.database import SQLITE, database_file
from mergeops.store.keys import hidden, quoted
from mergeops.store.no_redirects import NoRedirects

OTHER_WAYS_IN = (
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_WORKSPACE",
)
"""Settings that only MLflow's client understands."""
WEIGHTS = (hidden("mergeops.weights_sha256"), "mergeops.weights_sha256")
"""The tag of a run that names its weights; before 0.2 in the open."""
ANSWER_BYTES = 1 << 26
NO_ANSWER = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RecursionError,
    http.client.HTTPException,
    sqlite3.Error,
)
"""Whatever an answer is that is none."""


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """What is asked about."""

    experiment: str
    """By name."""
    runs: tuple[str, ...]
    """Ids; their tags, parameters, metrics and LoggedModels belong to them."""
    version: tuple[str, int] | None
    """One version of a registered model: that it is there."""
    names: tuple[str, ...] = ()
    """Registered models, with all versions and aliases."""
    models: tuple[str, ...] = ()
    """Ids of LoggedModels."""
    weights: tuple[str, ...] = ()
    """Digests of base and sources, whose runs in the experiment have them as a tag."""


def glance(spec: TrackingSpec, subjects: Subjects) -> str | None:
    """sha256 of what the store says now of the subjects; the same later means that nothing changed.

    Returns:
        None where it cannot be said without MLflow: another kind of store, a registry elsewhere,
        a way to log in that only MLflow knows, no answer, or a subject that is not there.
    """
    try:
        uri = chosen_uri(spec)
    except TrackingError:
        return None
    if spec.offline or chosen_registry(uri, spec.registry_uri) != uri:
        return None
    with contextlib.suppress(*NO_ANSWER):
        if uri.startswith(SQLITE):
            return _digest([uri, _rows(database_file(uri), subjects)])
        if uri.startswith("http") and not _needs_mlflow():
            return _digest([uri, _answers(_Server(uri, spec.timeout_s), subjects)])
    return None


def look_at_store(spec: TrackingSpec, experiments: Sequence[str]) -> dict[str, list[int]] | None:
    """The files that an sqlite store and the artifacts of some experiments are, as ``look_at``
    sees them; the same later means that nothing was written.

    Returns:
        None where files do not say all: another kind of store, artifacts elsewhere, an experiment
        that is not there, or a transaction that is not over.
    """
    try:
        uri = chosen_uri(spec)
        if not uri.startswith(SQLITE) or chosen_registry(uri, spec.registry_uri) != uri:
            return None
        file = database_file(uri).absolute()
        with contextlib.closing(_reader(file)) as database:
            places = [_artifacts(database, name) for name in experiments]
        log, journal = (file.with_name(f"{file.name}{end}") for end in ("-wal", "-journal"))
        if None in places or journal.exists():
            return None
        return look_at([file, *([log] if log.exists() else []), *filter(None, places)])
    except (*NO_ANSWER, TrackingError):
        return None


def _artifacts(database: sqlite3.Connection, experiment: str) -> Path | None:
    asked = "SELECT artifact_location FROM experiments WHERE name = ?"
    (location,) = database.execute(asked, (experiment,)).fetchone()
    parts = urlsplit(location)
    path = Path(unquote(parts.path) if parts.scheme == "file" else location)
    return path if path.is_absolute() and not parts.netloc else None


def _reader(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.as_uri()}?mode=ro", timeout=2, uri=True)


def _needs_mlflow() -> bool:
    """Whether only MLflow's client knows how to log in."""
    kept = Path("~/.mlflow/credentials").expanduser()
    return kept.exists() or any(os.environ.get(name) for name in OTHER_WAYS_IN)


def _digest(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=repr).encode()).hexdigest()


def _rows(file: Path, of: Subjects) -> list[Any]:
    with contextlib.closing(_reader(file)) as database:

        def ask(statement: str, *values: Any) -> list[Any]:
            return sorted(database.execute(statement, values).fetchall(), key=repr)

        said: list[Any] = [ask("SELECT version_num FROM alembic_version")]
        experiment = ask(
            "SELECT experiment_id, lifecycle_stage, artifact_location FROM experiments "
            "WHERE name = ?",
            of.experiment,
        )
        said.append(_there(experiment))
        for run in of.runs:
            said.append(_there(ask("SELECT * FROM runs WHERE run_uuid = ?", run)))
            for table in ("tags", "params", "latest_metrics"):
                said.append(ask(f"SELECT * FROM {table} WHERE run_uuid = ?", run))
            said.append(ask("SELECT * FROM logged_models WHERE source_run_id = ?", run))
        for model in of.models:
            said.append(_there(ask("SELECT * FROM logged_models WHERE model_id = ?", model)))
            said.append(ask("SELECT * FROM logged_model_tags WHERE model_id = ?", model))
        if of.version is not None:
            version = ask(
                "SELECT run_id, source, status, current_stage FROM model_versions "
                "WHERE name = ? AND version = ?",
                *of.version,
            )
            said.append(_there(version))
        for name in of.names:
            said.append(_there(ask("SELECT * FROM model_versions WHERE name = ?", name)))
            said.append(ask("SELECT * FROM registered_model_aliases WHERE name = ?", name))
        for sha256 in of.weights:
            runs = ask(
                "SELECT r.run_uuid, r.lifecycle_stage FROM runs r JOIN tags t USING (run_uuid) "
                "WHERE r.experiment_id = ? AND t.key IN (?, ?) AND t.value = ?",
                experiment[0][0],
                *WEIGHTS,
                sha256,
            )
            said.append(runs)
        return said


def _answers(server: _Server, of: Subjects) -> list[Any]:
    experiment = server.get("experiments/get-by-name", experiment_name=of.experiment)["experiment"]
    place = [experiment["experiment_id"]]
    said: list[Any] = [[*place, experiment["lifecycle_stage"], experiment["artifact_location"]]]
    for run_id in of.runs:
        run = server.get("runs/get", run_id=run_id)["run"]
        said.append(_sorted(run))
        models = {
            "experiment_ids": [run["info"]["experiment_id"]],
            "filter": f"source_run_id = '{run_id}'",
        }
        said.append(_sorted(server.post("logged-models/search", models)))
    said += [_sorted(server.get(f"logged-models/{quote(model)}")) for model in of.models]
    if of.version is not None:
        name, number = of.version
        version = server.get("model-versions/get", name=name, version=str(number))["model_version"]
        said.append([version.get(key) for key in ("run_id", "source", "status", "current_stage")])
    for name in of.names:
        said.append(_sorted(server.get("registered-models/get", name=name)))
        said.append(_sorted(server.get("model-versions/search", filter=f"name = {quoted(name)}")))
    for sha256 in of.weights:
        found = []
        for tag in WEIGHTS:
            wanted = {
                "experiment_ids": place,
                "filter": f"tags.`{tag}` = '{sha256}'",
                "run_view_type": "ALL",
            }
            found += [run["info"] for run in server.post("runs/search", wanted).get("runs", [])]
        said.append(sorted([info["run_id"], info["lifecycle_stage"]] for info in found))
    return said


def _there(rows: list[Any]) -> list[Any]:
    if not rows:
        raise KeyError("a subject is not there")
    return rows


def _sorted(said: Any) -> Any:
    """JSON with its lists in one order, whatever order the server took."""
    if isinstance(said, Mapping):
        return {key: _sorted(value) for key, value in said.items()}
    if isinstance(said, list):
        return sorted(map(_sorted, said), key=lambda value: json.dumps(value, sort_keys=True))
    return said


class _Server:
    """MLflow's REST API, https://mlflow.org/docs/latest/api_reference/rest-api.html.

    Args:
        uri: may hold credentials.
        timeout_s: of one answer.
    """

    def __init__(self, uri: str, timeout_s: int) -> None:
        parts = urlsplit(uri)
        self._root = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._timeout_s = min(timeout_s, 5)
        self._opener = urllib.request.build_opener(NoRedirects)
        self._headers = {"Accept": "application/json", **dict(_credentials(uri))}

    def get(self, path: str, **asked: str) -> dict[str, Any]:
        """The answer to a GET.

        Raises:
            OSError, ValueError: there is none, or it is no JSON object.
        """
        query = f"?{urlencode(asked)}" if asked else ""
        return self._ask(f"{path}{query}", None)

    def post(self, path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a POST; raises as ``get``."""
        return self._ask(path, json.dumps(asked).encode())

    def _ask(self, path: str, body: bytes | None) -> dict[str, Any]:
        headers = self._headers | ({"Content-Type": "application/json"} if body else {})
        # The scheme was checked to be http(s) when the URI was chosen.
        request = urllib.request.Request(f"{self._root}/api/2.0/mlflow/{path}", body, headers)
        with self._opener.open(request, timeout=self._timeout_s) as answer:
            said = json.loads(answer.read(ANSWER_BYTES))
        if not isinstance(said, dict) or said.get("next_page_token"):
            raise ValueError("no whole answer")
        return said


def _credentials(uri: str) -> Iterator[tuple[str, str]]:
    parts, env = urlsplit(uri), os.environ
    user = parts.username or env.get("MLFLOW_TRACKING_USERNAME")
    password = parts.password or env.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        text = base64.b64encode(f"{user}:{password}".encode()).decode()
        yield "Authorization", f"Basic {text}"
    elif token := env.get("MLFLOW_TRACKING_TOKEN"):
        yield "Authorization", f"Bearer {token}"
