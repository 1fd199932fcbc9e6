"""Which workspace of an MLflow server is meant, and how MLflow's client is kept in it.

MLflow knows one workspace for a whole process (``mlflow.set_workspace``, which sets
MLFLOW_WORKSPACE too). A connection of mergeops belongs to one, so every request of its client is
sent in its own, whatever another connection of the same process chose.
"""

from __future__ import annotations

import os
from typing import Any

from mergeops.errors import TrackingError
from mergeops.recipe import TrackingSpec
from mergeops.redact import redact

VARIABLE = "MLFLOW_WORKSPACE"
_switched: tuple[str | None, str] = (None, "")
"""What this module has set the variable to, and what the user had there."""


def takes_workspaces(uri: str) -> bool:
    """Whether a store may have workspaces: a server, or a database where MLflow was told so."""
    is_told = os.environ.get("MLFLOW_ENABLE_WORKSPACES", "").lower() in ("true", "1")
    return uri.startswith("http") or is_told


def chosen_workspace(spec: TrackingSpec, uri: str) -> str:
    """The recipe's workspace, else MLFLOW_WORKSPACE; empty where none is chosen, which is the
    server's own default.

    Raises:
        TrackingError: the recipe names one for a database that is opened without workspaces.
    """
    if takes_workspaces(uri):
        return (_users_own() if spec.workspace is None else spec.workspace).strip()
    if spec.workspace:
        raise TrackingError(
            f"tracking.workspace is {spec.workspace!r}, but {redact(uri)} is opened directly and "
            "has none; use the address of a server that runs with --enable-workspaces, or leave "
            "tracking.workspace out"
        )
    # MLflow itself leaves the variable alone for a database.
    return ""


def has_workspaces(uri: str) -> bool:
    """Whether a server says that it keeps workspaces; one that says nothing may."""
    if not uri.startswith("http"):
        return True
    from mlflow.utils import credentials, server_info

    who: Any = credentials.get_default_host_creds  # MLflow gives it no types
    answer = server_info.fetch_server_info(who(uri))
    said = (answer.data if answer.status_code == 200 else None) or {}
    return bool(said.get(server_info.SERVER_INFO_WORKSPACES_ENABLED, True))


def enter(workspace: str | None) -> None:
    """Send the process's next requests in this workspace; empty is the server's default, and with
    None, for stores without any, nothing is changed."""
    from mlflow.utils.workspace_context import get_request_workspace

    now = os.environ.get(VARIABLE, "").strip()
    if workspace is None or workspace == now == (get_request_workspace() or ""):
        return
    import mlflow

    global _switched
    # MLflow takes the name without blanks, and by the blank it is known that no user set it.
    _switched = (f"{workspace} ", _users_own())
    mlflow.set_workspace(workspace or None)
    os.environ[VARIABLE] = f"{workspace} "


def _users_own() -> str:
    now = os.environ.get(VARIABLE, "")
    mine, users = _switched
    return users if now == mine else now.strip()
