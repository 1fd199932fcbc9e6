"""Where a service keeps what is its own: database, token, and where it can be reached.

All of it lies in ``service`` of the work directory, which only its user can read. A command that is
given in the same project finds the server there, as it finds the merges.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from mergeops.checkpoint import replace_with
from mergeops.errors import ConfigError, ServiceError

SERVER_FILE = "server.json"
MOST_SOCKET = 100
"""Bytes of a Unix socket's path; Linux takes 107, macOS 103."""


@dataclass(frozen=True)
class Place:
    """The service's directory."""

    folder: Path

    @property
    def database(self) -> Path:
        """Of the embedded PostgreSQL."""
        return self.folder / "postgres"

    def make(self) -> None:
        """Make the directory, for its user only.

        Raises:
            ConfigError: it cannot be made, or is open to others.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be made: {error.strerror}") from error
        if self.folder.stat().st_uid != os.getuid():
            raise ConfigError(f"{self.folder} is another user's; choose another output.dir")

    def token(self) -> str:
        """The token that requests need; made once."""
        if given := os.environ.get("MERGEOPS_TOKEN"):
            return given
        path = self.folder / "token"
        if not path.exists():
            with replace_with(path) as partial:
                descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    file.write(secrets.token_urlsafe(32))
        return path.read_text().strip()

    def announce(self, address: Address) -> None:
        """Say where the server is, to commands of the same user."""
        path = self.folder / SERVER_FILE
        with replace_with(path) as partial:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(address), file)

    def withdraw(self) -> None:
        """Say no more where the server is, where it is this one's file."""
        path = self.folder / SERVER_FILE
        try:
            if json.loads(path.read_text())["process"] == os.getpid():
                path.unlink()
        except (OSError, ValueError, KeyError):
            pass


@dataclass(frozen=True)
class Address:
    """Where a server is reached."""

    url: str
    token: str
    process: int = 0


def find_server(folder: Path) -> Address:
    """The server of MERGEOPS_SERVER, else the one that runs in this project.

    Raises:
        ServiceError: there is none.
    """
    if url := os.environ.get("MERGEOPS_SERVER"):
        return Address(url.rstrip("/"), os.environ.get("MERGEOPS_TOKEN", ""))
    path = folder / SERVER_FILE
    try:
        raw = json.loads(path.read_text())
        return Address(str(raw["url"]), str(raw["token"]), int(raw["process"]))
    except FileNotFoundError:
        raise ServiceError(
            f"no server runs in this project ({path} is not there); start `mergeops serve`, or set "
            "MERGEOPS_SERVER and MERGEOPS_TOKEN"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise ServiceError(f"{path} cannot be read: {error}") from error
