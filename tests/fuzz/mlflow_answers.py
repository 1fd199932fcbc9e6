"""An MLflow server's answers as files, and a server that sends them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from support.loopback_server import served

RUN_ID, MODEL_ID = "0" * 31 + "1", "m-" + "0" * 31 + "1"
_MODEL = {
    "info": {
        "model_id": MODEL_ID,
        "experiment_id": "7",
        "name": "model",
        "creation_timestamp_ms": 1,
        "last_updated_timestamp_ms": 2,
        "artifact_uri": "in/logged",
        "status": "LOGGED_MODEL_READY",
        "source_run_id": RUN_ID,
        "tags": [{"key": "mergeops.role", "value": "source"}],
    },
    "data": {
        "params": [{"key": "lr", "value": "1"}],
        "metrics": [{"key": "eval_loss", "value": 0.5, "timestamp": 1, "step": 4}],
    },
}
_RUN = {
    "info": {
        "run_id": RUN_ID,
        "run_uuid": RUN_ID,
        "run_name": "math",
        "experiment_id": "7",
        "status": "FAILED",
        "start_time": 1,
        "end_time": 2,
        "artifact_uri": "in/artifacts",
        "lifecycle_stage": "active",
    },
    "data": {
        "params": [{"key": "output_dir", "value": "in"}, {"key": "base_model", "value": "in/base"}],
        "metrics": [{"key": "eval_loss", "value": 1.25, "timestamp": 1, "step": 4}],
        "tags": [{"key": "mergeops.checkpoint_uri", "value": "in/a"}],
    },
    "outputs": {"model_outputs": [{"model_id": MODEL_ID, "step": 4}]},
}
_VERSION = {
    "name": "skills",
    "version": "3",
    "creation_timestamp": 1,
    "status": "READY",
    "source": "in/a",
    "run_id": RUN_ID,
}
ANSWERS = {
    "experiments/get-by-name": {
        "experiment": {"experiment_id": "7", "name": "e", "lifecycle_stage": "active"}
    },
    "experiments/search": {"experiments": [{"experiment_id": "7", "name": "e"}]},
    "runs/get": {"run": _RUN},
    "runs/search": {"runs": [_RUN]},
    "logged-models/search": {"models": [_MODEL]},
    f"logged-models/{MODEL_ID}": {"model": _MODEL},
    "metrics/get-history": {
        "metrics": [{"key": "eval_loss", "value": 1.25, "timestamp": 1, "step": 4}]
    },
    "registered-models/get": {"registered_model": {"name": "skills"}},
    "registered-models/alias": {"model_version": _VERSION},
    "model-versions/get": {"model_version": _VERSION},
    "model-versions/search": {"model_versions": [_VERSION]},
}
"""What an MLflow server answers, by path."""


def answering(answers: Path) -> AbstractContextManager[str]:
    """A server that answers with the file of a path's name, whatever is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            path = self.path.partition("?")[0].partition("/mlflow/")[2]
            known = path in ANSWERS
            body = (answers / f"{path}.json").read_bytes() if known else b"{}"
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

    return served(Handler)
