"""Where to look in the MLflow UI.

``workflowType`` matters: without it the UI opens in its GenAI mode, where models are called
agent versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from mergeops.tracking.connection import Tracking

LOCAL_UI = "http://127.0.0.1:5000"
MODE = "workflowType=machine_learning"


def server_command(tracking: Tracking) -> str | None:
    """The command that serves an embedded store to a browser; None where a server runs already."""
    if tracking.uri.startswith("http"):
        return None
    return f"mlflow server --backend-store-uri {tracking.shown_uri} --port 5000"


def models_page(tracking: Tracking) -> str:
    """The leaderboard: parents and merges with their scores for each task."""
    return _page(tracking, f"experiments/{tracking.experiment_id}/models?{MODE}")


def runs_page(tracking: Tracking) -> str:
    """The runs, the best pooled dev score first; trials of a search are below it."""
    order = f"orderByKey={quote('metrics.`pooled`')}&orderByAsc=false"
    return _page(tracking, f"experiments/{tracking.experiment_id}/runs?{order}&{MODE}")


def run_page(tracking: Tracking, run_id: str, artifact: str | None = None) -> str:
    """A trial, or one of its artifacts."""
    below = f"/artifacts/{quote(artifact)}" if artifact else ""
    return _page(tracking, f"experiments/{tracking.experiment_id}/runs/{run_id}{below}?{MODE}")


def version_page(tracking: Tracking, name: str, version: int) -> str:
    """A registered version."""
    return _page(tracking, f"models/{quote(name, safe='')}/versions/{version}?{MODE}")


def _page(tracking: Tracking, path: str) -> str:
    start = tracking.shown_uri if tracking.uri.startswith("http") else LOCAL_UI
    return f"{start}/#/{path}"
