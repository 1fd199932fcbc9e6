"""Run as a program by the tests: commands of mergeops that are killed before a chosen step.

A step is a call that changes the disk (rename, link, unlink, mkdir, fsync, ...) or the database (a
statement that writes, and each commit). They are forked as ``forked_commands`` are.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.forked_commands import ForkedCommands, serve

from mergeops.store.client import quiet

CALLS = ("fsync", "rename", "replace", "link", "symlink", "unlink", "rmdir", "mkdir", "pwrite")
WRITING = ("INSERT", "UPDATE", "DELETE", "REPLACE")


@dataclass(frozen=True)
class CommandEnd:
    """How a command ended."""

    status: int
    """Exit code; -9 where it was killed."""
    steps: int
    """How many it made, where it lived."""
    out: str
    err: str


class MortalCommands:
    """Runs commands of mergeops, each in a process of its own."""

    def __init__(self) -> None:
        self._commands = ForkedCommands("support.mortal_commands")

    def run(
        self, place: Path, *words: str, killed_at: int | None = None, **environment: str
    ) -> CommandEnd:
        """The command in a user's directory, killed before that step."""
        whole = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        order = {"place": str(place), "words": words, "environment": whole}
        end = self._commands.ask({**order, "killed_at": killed_at})
        return CommandEnd(end["status"], end["told"], end["out"], end["err"])

    def close(self) -> None:
        """End the program."""
        self._commands.close()


class _Steps:
    def __init__(self, killed_at: int | None) -> None:
        self.taken, self._killed_at = 0, killed_at

    def take(self) -> None:
        if self.taken == self._killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.taken += 1

    def watch(self) -> None:
        """Count from now on."""
        from sqlalchemy import Engine, event

        for name in CALLS:
            setattr(os, name, self._mortal(getattr(os, name)))
        event.listen(Engine, "before_cursor_execute", self._statement)
        event.listen(Engine, "commit", lambda connection: self.take())

    def _mortal(self, call: Any) -> Any:
        def step(*arguments: Any, **named: Any) -> Any:
            self.take()
            return call(*arguments, **named)

        return step

    def _statement(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.lstrip().upper().startswith(WRITING):
            self.take()


def count_steps(order: dict[str, Any]) -> Callable[[], int]:
    """Count a command's steps from now on, and kill it before the one that the order names."""
    steps = _Steps(order["killed_at"])
    steps.watch()
    return lambda: steps.taken


if __name__ == "__main__":
    quiet()
    serve(count_steps)
