"""A job's command as a process: what it says is read as it comes, and it dies with its worker."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

MOST_LINE = 4000
"""Characters of a line that are kept."""
MOST_OUTPUT = 4_000_000
"""Bytes of a result that are kept."""
MOST_LINES = 20_000
"""Of one attempt."""
PATIENCE_S = 30.0
"""From SIGTERM to SIGKILL."""
ERROR = "mergeops: error: "
PARENT_DEATH = 1
"""PR_SET_PDEATHSIG of linux/prctl.h."""


class Child:
    """``mergeops COMMAND WORDS`` in a process group of its own.

    Args:
        command: what is executed.
        environment: of the process.
        directory: it works there.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], directory: str
    ) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self._dropped = 0
        self.lines: list[str] = []
        """What it said since they were taken last."""
        self.said = 0
        self.progress: dict[str, Any] | None = None
        self.output = b""
        self.error: str | None = None
        """The one line that a command of mergeops fails with."""

    async def run(self) -> int:
        """Run to the end.

        Returns:
            The exit code; negative is the signal that killed it.
        """
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            cwd=self._directory,
            start_new_session=True,
            preexec_fn=die_with_parent(),
            limit=1 << 20,
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        await asyncio.gather(
            self._read_lines(self._process.stderr), self._read_output(self._process.stdout)
        )
        return await self._process.wait()

    async def stop(self, patience_s: float = PATIENCE_S) -> None:
        """SIGTERM, by which a command of mergeops ends and can go on later; then SIGKILL."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), patience_s)
        # Also what it started itself and left behind.
        self._signal(signal.SIGKILL)

    def take_lines(self) -> list[str]:
        """What was said since the last call."""
        taken, self.lines = self.lines, []
        return taken

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _read_lines(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                raw = await stream.readline()
            except ValueError:
                # A line of more than a megabyte: the reader has dropped it.
                self._keep("(a line of more than a megabyte)")
                continue
            if not raw:
                return
            self._read(raw.decode("utf-8", "replace").rstrip("\r\n"))

    def _read(self, line: str) -> None:
        if line.startswith(ERROR):
            self.error = line.removeprefix(ERROR)[:MOST_LINE]
        told = _as_progress(line)
        if told is None:
            self._keep(line)
        elif "step" in told:
            self._keep(f"· {told['step']}")
        else:
            self.progress = told

    def _keep(self, line: str) -> None:
        self.said += 1
        if self.said == MOST_LINES:
            line = "(what follows is not kept: this is line 20,000)"
        if self.said <= MOST_LINES and line:
            # PostgreSQL keeps no NUL in a text.
            self.lines.append(line[:MOST_LINE].replace("\0", "�"))

    async def _read_output(self, stream: asyncio.StreamReader) -> None:
        kept: list[bytes] = []
        size = 0
        while block := await stream.read(1 << 16):
            size += len(block)
            if size <= MOST_OUTPUT:
                kept.append(block)
        self.output = b"".join(kept) if size <= MOST_OUTPUT else b""

    @property
    def result(self) -> Any:
        """The JSON that the command printed; None where it printed none."""
        try:
            return json.loads(self.output.replace(b"\\u0000", b""))
        except ValueError:
            return None


def mergeops_command(command: str, words: Sequence[str]) -> list[str]:
    """How a job's command is executed."""
    return [sys.executable, "-m", "mergeops", *command.split(), *words]


def _as_progress(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        told = json.loads(line)
    except ValueError:
        return None
    known = isinstance(told, dict) and ("step" in told or {"task", "done"} <= told.keys())
    return told if known else None


def die_with_parent() -> Callable[[], None] | None:
    """Between fork and exec: ask Linux to kill this process when its worker is killed."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    worker = os.getpid()

    def ask() -> None:
        libc.prctl(PARENT_DEATH, signal.SIGKILL)
        if os.getppid() != worker:
            # It died before the request.
            os._exit(1)

    return ask
