"""A real ``mlflow server`` process on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

PASSWORD = "right-password-1"
"""Of the user admin, where a test's server has accounts."""
USERS = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_WORKSPACE",
)
"""What a user's environment says, and a server's does not."""


class Server:
    """An ``mlflow server`` with a directory of its own; start, stop, start again.

    Args:
        folder: keeps database and artifacts, where nothing else is said.
        template: an empty MLflow database to begin with, which saves its creation.
        store: URI of another database.
        artifacts: where the server puts artifacts on behalf of its clients, e.g. s3://bucket; or
            with ``direct`` where its clients put them themselves.
        direct: clients talk to the artifact store, the server does not.
        environment: more of it for the process.
        password: of the user admin; the server asks for it with every request.
        workspaces: it has some beside ``default``.
    """

    def __init__(
        self,
        folder: Path,
        template: Path | None = None,
        *,
        store: str | None = None,
        artifacts: str | None = None,
        direct: bool = False,
        environment: dict[str, str] | None = None,
        password: str | None = None,
        workspaces: bool = False,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if template is not None:
            shutil.copy(template, folder / "mlflow.db")
        place = artifacts or str(folder / "artifacts")
        self._options = ["--backend-store-uri", store or f"sqlite:///{folder}/mlflow.db"]
        if direct:
            self._options += ["--no-serve-artifacts", "--default-artifact-root", place]
        else:
            self._options += ["--artifacts-destination", place]
        self._options += ["--enable-workspaces"] if workspaces else []
        self._environment = environment or {}
        if password is not None:
            self._options += ["--app-name", "basic-auth"]
            self._environment = {
                **self._environment,
                "MLFLOW_AUTH_ADMIN_PASSWORD": password,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-tests",
            }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and wait until it answers."""
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *self._options,
        ]
        environment = {
            **os.environ,
            **self._environment,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        for name in USERS:
            environment.pop(name, None)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.1)
        self.stop()
        raise RuntimeError((self.folder / "server.log").read_text()[-2000:])

    def stop(self) -> None:
        """Kill the process and its workers."""
        if self._process is None:
            return
        # The session's group is this server and its workers, nothing else.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        self._process = None
