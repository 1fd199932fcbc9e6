"""What MLflow's accounts are refused, in words: who, what, and which permission it takes.

MLflow 3.17.2 has READ, USE, EDIT and MANAGE of an experiment or a registered model, and DENY; of
the versions of registered models only for all of a workspace. There is none for one alias: who has
EDIT of a registered model, and READ of versions, may set every alias of it.
"""

from __future__ import annotations

import os

from mergeops.errors import AwayError, TrackingError

MADE = {
    "create experiment": "an experiment",
    "create registered model": "a registered model",
}


def needed(what: str) -> str:
    """The permission that a call of MLflow's client takes.

    Args:
        what: the method's name with blanks, e.g. ``set registered model alias``.
    """
    if "webhook" in what:
        return "an administrator's account"
    if what in MADE:
        return f"the right to make {MADE[what]} (USE of the workspace)"
    if "workspace" in what:
        return "a role in that workspace"
    is_registry = "registered model" in what or "model version" in what
    thing = "the registered model" if is_registry else "the experiment"
    verb = what.partition(" ")[0]
    if "alias" in what:
        # Versions may be denied to those who may edit the model.
        thing += " and READ of its versions"
    elif what.startswith("get model version"):
        thing += " and its versions"
    if verb in ("get", "search", "list", "download", "read"):
        # With workspaces MLflow denies what is not there, too.
        return f"READ of {thing}, where there is one"
    # A tag of a registered model is deleted with EDIT already; an alias takes more.
    is_large = verb == "delete" and what not in ("delete registered model tag", "delete tag")
    return f"{'MANAGE' if is_large else 'EDIT'} of {thing}"


def denied(message: str, where: str, what: str, about: str) -> TrackingError:
    """The error for a request that was refused as not allowed.

    Args:
        message: MLflow's own.
        where: the server, without credentials.
        what: the step, see ``needed``.
        about: name of the registered model or experiment; empty where it is not known.
    """
    if "Invalid Host header" in message:
        return TrackingError(
            f"the MLflow server at {where} refuses requests under this host name; start it with "
            "--allowed-hosts, or use the name it knows"
        )
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    has_password = bool(
        os.environ.get("MLFLOW_TRACKING_TOKEN") or os.environ.get("MLFLOW_TRACKING_PASSWORD")
    )
    is_known = " 401" not in message and "UNAUTHENTICATED" not in message
    if is_known and has_password:
        who = f"the account {user!r}" if user else "this account"
        thing = f" {about!r}" if about else ""
        return AwayError(
            f"the MLflow server at {where} denies access: {who} may not {what}{thing}, which takes "
            f"{needed(what)}; ask who manages it, or an administrator of the server, for it, or "
            "use another account"
        )
    if has_password:
        return AwayError(
            f"the MLflow server at {where} denies access; check MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, and the user's permissions"
        )
    return AwayError(
        f"the MLflow server at {where} denies access; set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    )
