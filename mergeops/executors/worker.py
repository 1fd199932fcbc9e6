"""A worker: connects to its driver, does one unit after the other, and ends with the line.

``python -m mergeops.executors.worker`` is one, with the invitation in ``MERGEOPS_WORKER``; Ray and
Slurm call ``work``.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import importlib
import logging
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from typing import Any

from mergeops.checkpoint import STAGE_VARIABLE
from mergeops.errors import MergeError, MergeopsError
from mergeops.executors.line import Invitation, Line, connect
from mergeops.executors.surroundings import problems
from mergeops.executors.units import Desk, WorkFunction

VARIABLE = "MERGEOPS_WORKER"
BEAT_S = 0.25
"""How often a worker looks at its memory ..."""
ALIVE_S = 5.0
"""... and how often it says that it lives."""
TOLD_S = 0.2
"""Between two messages about how far a unit is."""
LOG_LINES = 200


def work(invitation: str, host: str = "") -> None:
    """Do units until the driver has no more, or is gone.

    Args:
        invitation: as ``Invitation.text`` wrote it.
        host: what this machine is called in messages; empty takes its name.
    """
    invited = Invitation.read(invitation)
    line = connect(invited)
    line.send({"hello": invited.number, "host": host or socket.gethostname(), "pid": os.getpid()})
    _Worker(line, invited.number).run()


class _Worker:
    """Units in the main thread; one thread listens, and one watches the memory."""

    def __init__(self, line: Line, number: int) -> None:
        self._line = line
        self._place = Desk(number, self._tell)
        self._orders: queue.Queue[dict[str, Any]] = queue.Queue()
        self._running = ""
        self._told = 0.0
        self._changing = threading.Lock()

    def run(self) -> None:
        threading.Thread(target=self._listen, name="orders", daemon=True).start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        while True:
            order = self._orders.get()
            if "check" in order:
                self._place.memory = order["memory"]
                with contextlib.suppress(OSError):
                    # Where it is there, relative paths mean the same for all.
                    os.chdir(order["check"]["directory"])
                if order["stage"]:
                    os.environ[STAGE_VARIABLE] = os.path.expandvars(order["stage"])
                self._line.send({"problems": problems(order["check"], order["host"])})
            elif "unit" in order:
                self._do(order)
            elif "end" in order:
                return

    def _do(self, order: Mapping[str, Any]) -> None:
        log = _Log()
        logging.getLogger().addHandler(log)
        answer: dict[str, Any]
        try:
            self._running, self._told = order["unit"], 0.0
            result = function_of(order["work"])(order["payload"], self._place)
            answer = {"finished": order["unit"], "result": result}
        except KeyboardInterrupt:
            answer = {"cancelled": order["unit"]}
        except Exception as error:
            answer = {"failed": order["unit"], **described(error)}
            answer["log"] = "\n".join([*log.lines, traceback.format_exc()])
        finally:
            logging.getLogger().removeHandler(log)
            with self._changing:
                self._running = ""
        self._line.send(answer)

    def _tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told >= TOLD_S or done >= total:
            self._told = now
            self._line.send({"unit": self._running, "done": done, "total": total})

    def _listen(self) -> None:
        try:
            while True:
                order = self._line.receive()
                if "cancel" not in order:
                    self._orders.put(order)
                    if "end" in order:
                        return
                    continue
                with self._changing:
                    if self._running == order["cancel"]:
                        _thread.interrupt_main()
        except (OSError, EOFError, ValueError, TypeError):
            # The driver is gone, and nobody wants what is being done. Everything that a unit
            # leaves is whole or goes on later.
            os._exit(0)

    def _watch(self) -> None:
        said = time.monotonic()
        while True:
            time.sleep(BEAT_S)
            memory, unit = self._place.memory, self._running
            if memory is not None and unit and (held := own_bytes()) > memory:
                error = MergeError(
                    f"worker {self._place.number} holds {held / 1e9:.2f} GB of memory, more than "
                    f"executor.memory allows ({memory / 1e9:.2f} GB); allow more, or fewer threads"
                )
                error.__cause__ = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
                self._send({"failed": unit, **described(error), "log": ""})
                os._exit(1)
            if time.monotonic() - said > ALIVE_S:
                said = time.monotonic()
                self._send({"alive": True})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._line.send(message)
        except OSError:
            os._exit(0)


class _Log(logging.Handler):
    """The last lines that were logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[str] = deque(maxlen=LOG_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")


def function_of(work: str) -> WorkFunction:
    """The function that ``package.module:function`` names."""
    module, _, name = work.partition(":")
    function: WorkFunction = getattr(importlib.import_module(module), name)
    return function


def described(error: Exception) -> dict[str, Any]:
    """An error as JSON types: its class, where it is one of ours, and what it says."""
    own = type(error).__name__ if isinstance(error, MergeopsError) else ""
    text = str(error) if own else f"{type(error).__name__}: {error}"
    cause = error.__cause__
    return {
        "class": own,
        "message": text,
        "at": getattr(error, "at", "") if own else "",
        # Whether it is the system's fault decides whether work that is left is worth keeping.
        "errno": cause.errno if isinstance(cause, OSError) else None,
    }


def own_bytes() -> int:
    """Memory of this process's own, without mapped files."""
    import psutil

    facts = psutil.Process().memory_info()
    return int(facts.rss - getattr(facts, "shared", 0))


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    work(os.environ.pop(VARIABLE))
