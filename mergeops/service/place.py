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
from mergeops.client import SERVER_FILE, Address
from mergeops.errors import ConfigError

MOST_SOCKET = 100
"""Bytes of a Unix socket's path; Linux takes 107, macOS 103."""


@dataclass(frozen=True)
class ServicePlace:
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
