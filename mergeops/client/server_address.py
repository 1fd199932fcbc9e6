"""Where a server is reached, and with which token."""

from __future__ import annotations

import base64
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
    account: str = ""
    """NAME:PASSWORD of an account of MLflow, where there is no token."""

    @property
    def authorization(self) -> str:
        """The header of every request."""
        if self.account and not self.token:
            return f"Basic {base64.b64encode(self.account.encode()).decode()}"
        return f"Bearer {self.token}"


def find_server(folder: Path) -> Address:
    """The server of MERGEOPS_SERVER, else the one that runs in this project.

    The first gets MERGEOPS_TOKEN, or without one MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD, which a server with ``accounts: mlflow`` takes.

    Args:
        folder: the service's directory, ``service`` in ``output.dir``.

    Raises:
        ServiceError: there is none.
    """
    if url := os.environ.get("MERGEOPS_SERVER"):
        name, password = (os.environ.get(f"MLFLOW_TRACKING_{n}") for n in ("USERNAME", "PASSWORD"))
        account = f"{name}:{password}" if name and password else ""
        return Address(url.rstrip("/"), os.environ.get("MERGEOPS_TOKEN", ""), account=account)
    path = folder / SERVER_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Address(str(raw["url"]), str(raw["token"]), int(raw["process"]))
    except FileNotFoundError:
        raise ServiceError(
            f"no server runs in this project ({path} is not there); start `mergeops serve` here, "
            "or set MERGEOPS_SERVER, and MERGEOPS_TOKEN or the account of MLflow"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServiceError(f"{path} cannot be read: {error}") from error
