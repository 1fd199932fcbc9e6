"""Leaderboards as the page shows them: what was read last, at once.

Reading one asks MLflow for the answers of every trial, which takes a while and a gigabyte for a
thousand of them. So it is done in a process of its own, whose memory goes back with it, and the
page never waits for it for long.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from mergeops.errors import MergeopsError, TrackingError
from mergeops.recipe import TrackingSpec
from mergeops.report import Compared
from mergeops.service.child import die_with_parent
from mergeops.tracking import compare_experiments

FRESH_S = 30.0
"""How old a board may be before it is read again."""
PATIENCE_S = 0.15
"""How long a first view waits: a small board is there by then."""
MOST = 20
"""Boards that are kept, and that may wait to be read."""


@dataclass(frozen=True)
class ShownBoard:
    """A board, or why there is none."""

    compared: Compared | None = None
    problem: str = ""
    age_s: float = 0.0
    """Since it was read."""
    is_read: bool = False
    """Whether it is being read at this moment."""


@dataclass(frozen=True)
class _ReadBoard:
    compared: Compared | None
    problem: str
    at: float


class Boards:
    """The boards of a server.

    Args:
        read: reads the one of an experiment; raises MergeopsError where there is none.
    """

    def __init__(self, read: Callable[[str], Compared]) -> None:
        self._read = read
        self._kept: dict[str, _ReadBoard] = {}
        self._reading: dict[str, threading.Event] = {}
        """Set once it is read."""
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def shown(self, experiment: str) -> ShownBoard:
        """What is known of an experiment's board; an old one is read again meanwhile."""
        with self._lock:
            kept, reading = self._kept.get(experiment), self._reading.get(experiment)
            is_old = kept is None or time.monotonic() - kept.at > FRESH_S
            if is_old and reading is None:
                if len(self._reading) >= MOST:
                    return ShownBoard(problem="many leaderboards are being read; look again later")
                reading = self._reading[experiment] = threading.Event()
                # A server that stops does not wait for it.
                threading.Thread(target=self._keep, args=(experiment,), daemon=True).start()
        if kept is None and reading is not None:
            reading.wait(PATIENCE_S)
            with self._lock:
                kept = self._kept.get(experiment)
        if kept is None:
            return ShownBoard(is_read=True)
        age_s = time.monotonic() - kept.at
        return ShownBoard(kept.compared, kept.problem, age_s, age_s > FRESH_S)

    def _keep(self, experiment: str) -> None:
        compared, problem = None, ""
        try:
            with self._turn:
                compared = self._read(experiment)
        except MergeopsError as error:
            problem = str(error)
        finally:
            with self._lock:
                if len(self._kept) >= MOST:
                    del self._kept[min(self._kept, key=lambda name: self._kept[name].at)]
                self._kept[experiment] = _ReadBoard(compared, problem, time.monotonic())
                self._reading.pop(experiment).set()


def read_apart(spec: TrackingSpec, experiment: str) -> Compared:
    """Read a board in a process of its own, which ends with this one.

    Raises:
        TrackingError: MLflow cannot be asked, or nothing was scored.
    """
    program = "from mergeops.service.boards import answer; answer()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps((spec, experiment)),
        capture_output=True,
        preexec_fn=die_with_parent(),
        check=False,
    )
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise TrackingError(f"the leaderboard cannot be read: {' '.join(last)[:300]}")
    told: Compared | MergeopsError = pickle.loads(done.stdout)
    if isinstance(told, MergeopsError):
        raise told
    return told


def answer() -> None:
    """What that process does: read what is wanted from its input, and write the board, or the
    error, to its output."""
    spec, experiment = pickle.load(sys.stdin.buffer)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What a library prints is not mixed with it.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    told: Compared | MergeopsError
    try:
        told = compare_experiments(spec, [experiment])
    except MergeopsError as error:
        told = type(error)(str(error))
    with out:
        pickle.dump(told, out)
