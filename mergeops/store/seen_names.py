"""What commands of this user saw in MLflow, kept for the shell's completion: no server is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from mergeops.checkpoint import keep_text
from mergeops.errors import TrackingError
from mergeops.kernels import user_cache
from mergeops.recipe import TrackingSpec
from mergeops.store.address import chosen_uri

MOST = 300
"""URIs kept of one server, the newest."""
MOST_SERVERS = 20


def keep_seen(uri: str, found: Mapping[str, str]) -> None:
    """Add what a command saw; where nothing can be written, nothing is completed.

    Args:
        uri: of the tracking server.
        found: runs:/ID, models:/NAME/VERSION, ... -> what a person calls it.
    """
    file, servers = _file(), _read()
    before = servers.pop(_name(uri), {})
    newest = [*found.items(), *((k, v) for k, v in before.items() if k not in found)]
    servers = {_name(uri): dict(newest[:MOST]), **servers}
    keep_text(file, json.dumps(dict(list(servers.items())[:MOST_SERVERS])))


def seen(uri: str | None = None) -> dict[str, str]:
    """URI -> what a person calls it, the newest first.

    Args:
        uri: of the tracking server; None takes the one that a recipe without any takes.
    """
    try:
        return _read().get(_name(chosen_uri(TrackingSpec(uri=uri))), {})
    except TrackingError:
        return {}


def _file() -> Path:
    return user_cache("seen.json")


def _name(uri: str) -> str:
    # An address may hold credentials.
    return hashlib.sha256(uri.encode()).hexdigest()[:32]


def _read() -> dict[str, dict[str, str]]:
    try:
        kept = json.loads(_file().read_text(encoding="utf-8"))
        return {str(name): {str(k): str(v) for k, v in of.items()} for name, of in kept.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
