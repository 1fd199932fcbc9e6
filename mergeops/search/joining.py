"""Several commands on one study: one leads it, the others try out candidates for it.

The command that has the lock of the study's folder leads. What it proposes lies in the folder as
files, which the other commands claim by a lock of their own; what they find is written beside it. A
lock ends with its process, so what a killed command had claimed is claimed by another, and where it
was the leader's, one of the others leads on: it goes through the study again, and what was scored
is found. Several machines need a folder that all see, on storage whose locks hold for all of them.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mergeops.checkpoint import locked, replace_with
from mergeops.errors import ConfigError, EvaluationError, MergeError
from mergeops.executors import Desk
from mergeops.progress import Progress
from mergeops.search.bench import Bench
from mergeops.search.crew import (
    Alone,
    Assignment,
    TriedOut,
    WorkerTime,
    candidate_of,
    payload_of,
    try_out,
)

LOOK_S = 0.2
"""Between two looks into the folder."""
AHEAD = 2
"""Candidates that wait or run for each command that helps: one is there when the last is done."""


class Board:
    """Where a study's candidates are offered to other commands.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path) -> None:
        self._jobs, self._helpers = folder / "jobs", folder / "helpers"
        self._last = 0
        for place in (self._jobs, self._helpers):
            place.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Take down what an earlier leader offered."""
        for file in self._jobs.iterdir():
            file.unlink(missing_ok=True)
        for file in self._helpers.iterdir():
            if not _is_held(file):
                file.unlink(missing_ok=True)

    @contextmanager
    def helping(self) -> Iterator[None]:
        """Be counted as one that helps, for the block."""
        with locked(self._helpers / own_name()):
            yield

    def helpers(self) -> int:
        """How many help now."""
        return sum(_is_held(file) for file in self._helpers.iterdir())

    def offer(self, payload: dict[str, Any]) -> str:
        """Offer a candidate; returns the name of the offer, which no other ever has."""
        self._last += 1
        name = f"{self._last:06d}-{secrets.token_hex(8)}"
        self._write(f"{name}.json", payload)
        return name

    def offered(self) -> list[str]:
        """What is offered, the first first."""
        return sorted(file.stem for file in self._jobs.glob("*.json"))

    @contextmanager
    def claimed(self, name: str) -> Iterator[dict[str, Any] | None]:
        """Have a candidate to oneself for the block; None where it is done, or another has it."""
        try:
            with locked(self._jobs / f"{name}.lock", wait=False):
                yield None if self.found(name) else self._read(f"{name}.json")
        except BlockingIOError:
            yield None

    def tell(self, name: str, found: dict[str, Any]) -> None:
        """Say what became of a candidate that one has claimed."""
        self._write(f"{name}.found", found)

    def found(self, name: str) -> dict[str, Any] | None:
        """What became of a candidate; None where nobody said so yet."""
        return self._read(f"{name}.found")

    def take_down(self, name: str) -> None:
        """Offer a candidate no more."""
        for end in ("json", "found", "lock"):
            (self._jobs / f"{name}.{end}").unlink(missing_ok=True)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        with replace_with(self._jobs / name) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self._jobs / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found


class Together:
    """This process, and the commands that help it.

    Args:
        bench: of the study.
        board: where candidates are offered.
    """

    def __init__(self, bench: Bench, board: Board) -> None:
        self._bench, self._board, self._alone = bench, board, Alone(bench)
        self._jobs: dict[str, Assignment] = {}
        self._time = WorkerTime()
        board.clear()

    @property
    def workers(self) -> int:
        """This process and those that help."""
        return 1 + self._board.helpers()

    @property
    def at_once(self) -> int:
        """See ``Crew``."""
        return 1 + AHEAD * self._board.helpers()

    @property
    def worker_seconds(self) -> float:
        """See ``Crew``."""
        return self._time.until_now(self.workers)

    def submit(self, job: Assignment) -> None:
        """Offer a candidate, to this process, too."""
        self._time.until_now(self.workers)
        self._jobs[self._board.offer(payload_of(job, self._bench))] = job

    def next(self) -> TriedOut:
        """What another command has found, else what this one finds."""
        while True:
            self._time.until_now(self.workers)
            for name, job in self._jobs.items():
                if (found := self._board.found(name)) is not None:
                    return self._told(name, job, found)
            for name, job in self._jobs.items():
                with self._board.claimed(name) as payload:
                    if payload is not None:
                        self._alone.submit(job)
                        outcome = self._alone.next()
                        self._end(name)
                        return outcome
            time.sleep(LOOK_S)

    def _told(self, name: str, job: Assignment, found: dict[str, Any]) -> TriedOut:
        self._end(name)
        candidate = None if "reason" in found else candidate_of(job, found, self._bench)
        told = {key: found.get(key, "") for key in ("reason", "log")}
        return TriedOut(job.key, candidate, **told, **found["span"])

    def _end(self, name: str) -> None:
        del self._jobs[name]
        self._board.take_down(name)


@contextmanager
def leading(folder: Path, progress: Progress) -> Iterator[None]:
    """Lead a study for the block; as long as another command does, help that one first.

    Args:
        folder: of the study; equal folders are equal studies.
        progress: told when this command helps, and what it tries out.
    """
    with ExitStack() as held:
        if not _leads(folder, held):
            progress.step(f"another command leads this study in {folder}; this one helps it")
            _help(folder, held, progress)
            progress.step("the other command has ended; this one goes on with the study")
        yield


def _leads(folder: Path, held: ExitStack) -> bool:
    """Whether this command got the lead, which it has until ``held`` is closed."""
    try:
        held.enter_context(locked(folder / "lock", wait=False))
    except BlockingIOError:
        return False
    return True


def _help(folder: Path, held: ExitStack, progress: Progress) -> None:
    """Try out what is offered, until this command leads."""
    board, desk = Board(folder), Desk(number=1, tell=lambda done, total: None)
    with board.helping():
        while not _leads(folder, held):
            if not any(_try_one(board, name, desk, progress) for name in board.offered()):
                time.sleep(LOOK_S)
    for kept in desk.kept.values():
        if isinstance(kept, Bench):
            kept.close()


def _try_one(board: Board, name: str, desk: Desk, progress: Progress) -> bool:
    with board.claimed(name) as payload:
        if payload is None:
            return False
        progress.step(f"tries out {payload['label']}")
        began = time.time()
        try:
            found = try_out(payload, desk)
        except (ConfigError, MergeError, EvaluationError) as error:
            found = {"reason": str(error), "log": traceback.format_exc()}
        span = {"worker": own_name(), "began": began, "seconds": time.time() - began}
        board.tell(name, found | {"span": span})
        return True


def own_name() -> str:
    """Of this process, among all that work on a study."""
    return f"{socket.gethostname()}-{os.getpid()}"


def _is_held(file: Path) -> bool:
    try:
        with locked(file, wait=False):
            return False
    except BlockingIOError:
        return True
