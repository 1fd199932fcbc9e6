"""Where a server is reached, and with which token."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from mergeops.errors import ServiceError

SERVER_FILE = "server.json"
"""In the service's directory, for its user only."""


@dataclass(frozen=True)
class Address:
    """Where a server is reached."""

    url: str
    token: str
    process: int = 0
    """The server's, where it is on this machine."""


def find_server(folder: Path) -> Address:
    """The server of MERGEOPS_SERVER, else the one that runs in this project.

    Args:
        folder: the service's directory, ``service`` in ``output.dir``.

    Raises:
        ServiceError: there is none.
    """
    if url := os.environ.get("MERGEOPS_SERVER"):
        return Address(url.rstrip("/"), os.environ.get("MERGEOPS_TOKEN", ""))
    path = folder / SERVER_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Address(str(raw["url"]), str(raw["token"]), int(raw["process"]))
    except FileNotFoundError:
        raise ServiceError(
            f"no server runs in this project ({path} is not there); start `mergeops serve` here, "
            "or set MERGEOPS_SERVER and MERGEOPS_TOKEN"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServiceError(f"{path} cannot be read: {error}") from error
