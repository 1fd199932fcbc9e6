"""Where to look in the MLflow UI.

``workflowType`` matters: without it the UI opens in its GenAI mode, where models are called
agent versions.
"""

from __future__ import annotations

from urllib.parse import quote

from mergeops.store import Tracking

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


def _page(tracking: Tracking, path: str) -> str:
    start = tracking.shown_uri if tracking.uri.startswith("http") else LOCAL_UI
    return f"{start}/#/{path}"
