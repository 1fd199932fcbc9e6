"""The driver's side of every executor: gives units to workers, and notices those that are gone.

Engines differ in how a worker is started and how it is told that one ended (``Launcher``); what
workers do, how they are checked and what becomes of a dead one's unit is the same for all.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError, connection
from typing import Any, Self

from mergeops.errors import ConfigError, MergeError, MergeopsError
from mergeops.executors.hired import Hired
from mergeops.executors.launcher import Launcher
from mergeops.executors.line import Invitation, greet
from mergeops.executors.surroundings import Probes, questions
from mergeops.executors.units import (
    Advanced,
    Event,
    Failed,
    Finished,
    Lost,
    Needs,
    Started,
    Unit,
    error_of,
)

MOST_DEATHS = 3
"""Workers that a unit may end before it is given up: it may be what ends them."""
MOST_STILLBORN = 3
"""Workers in a row that may end before they ask for work."""
WATCH_S = 0.5
"""How often it is looked after workers that ended without a word."""


class Executor:
    """Units are submitted, and what becomes of them is told; see the package's docstring.

    Args:
        launcher: starts workers, as many as there are units, up to its number.
        needs: what workers must have; one that lacks something is an error before any work.
        patience_s: seconds of silence after which a worker is taken for gone.
        stage: see ``ExecutorSpec``.
    """

    def __init__(
        self,
        launcher: Launcher,
        needs: Needs | None = None,
        *,
        patience_s: float = 60.0,
        stage: str | None = None,
    ) -> None:
        self.workers = launcher.workers
        """How many units are worked on at a time."""
        self._launcher = launcher
        self._needs = needs = needs or Needs()
        self._patience_s = patience_s
        self._stage = stage
        self._key = secrets.token_bytes(32)
        self._lock = threading.RLock()
        self._told: queue.Queue[Event | Exception] = queue.Queue()
        self._units: dict[str, Unit] = {}
        self._open: set[str] = set()
        self._waiting: deque[Unit] = deque()
        self._hired: dict[int, Hired] = {}
        self._coming: set[int] = set()
        self._deaths: Counter[str] = Counter()
        self._last = self._stillborn = 0
        self._closed = False
        try:
            self._probes = Probes(needs.shared)
        except OSError as error:
            raise MergeError(f"{error.filename} cannot be written: {error.strerror}") from error
        address: Any = launcher.address
        self._listener = connection.Listener(
            address if address.startswith("/") else (address, 0), backlog=64
        )
        bound: Any = self._listener.address
        self.address = bound if isinstance(bound, str) else f"{address}:{bound[1]}"
        """Where workers find this process."""
        for target in (self._let_in, self._watch):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()

    def submit(self, unit: Unit) -> None:
        """Have a unit done; one of that name that was submitted before is not done again."""
        with self._lock:
            if unit.name in self._units:
                return
            self._units[unit.name] = unit
            self._open.add(unit.name)
            self._waiting.append(unit)
            self._hand_out()

    def cancel(self, name: str) -> None:
        """Have a unit left alone: nothing more is told of it; its worker goes on with others."""
        with self._lock:
            self._open.discard(name)
            self._waiting = deque(unit for unit in self._waiting if unit.name != name)
            for worker in self._hired.values():
                if worker.unit is not None and worker.unit.name == name:
                    self._send(worker, {"cancel": name})

    def events(self, timeout_s: float | None = None) -> Iterator[Event]:
        """What becomes of the units, in the order in which it happens.

        It ends when nothing is left to be told of any unit; after another ``submit``, which may
        happen in between, it goes on or is called again.

        Args:
            timeout_s: end, too, when nothing was told for so long; None waits.

        Raises:
            ConfigError, MergeError: workers are not as they have to be, or cannot be started.
        """
        while self._open or not self._told.empty():
            try:
                told = self._told.get(timeout=timeout_s)
            except queue.Empty:
                return
            if isinstance(told, Exception):
                raise told
            if told.unit.name not in self._open:
                continue
            if isinstance(told, Finished | Failed):
                self._open.discard(told.unit.name)
            yield told

    def close(self) -> None:
        """End all workers, whatever they do."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._waiting.clear()
            hired = list(self._hired.values())
        for worker in hired:
            if worker.unit is None:
                self._send(worker, {"end": True})
            else:
                # It leaves its unit when nobody listens any more.
                worker.line.close()
        with suppress(OSError), connection.Client(self._listener.address):
            # Who waits for the next one to be let in looks up.
            pass
        self._listener.close()
        with self._lock:
            self._launcher.close()
        self._probes.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hand_out(self) -> None:
        """Give waiting units to workers without one, and hire for those that are left."""
        for worker in self._hired.values():
            if worker.is_leaving and worker.is_ready and worker.unit is None:
                self._send(worker, {"end": True})
        staying = [worker for worker in self._hired.values() if not worker.is_leaving]
        for worker in staying:
            if self._waiting and worker.is_ready and worker.unit is None:
                worker.unit = unit = self._waiting.popleft()
                self._told.put(Started(unit, str(worker)))
                order = {"unit": unit.name, "work": unit.work, "payload": dict(unit.payload)}
                self._send(worker, order)
        staff = len(staying) + len(self._coming)
        busy = sum(worker.unit is not None for worker in staying)
        for _ in range(min(self.workers, busy + len(self._waiting)) - staff):
            self._last += 1
            self._coming.add(self._last)
            try:
                self._launcher.launch(Invitation(self._last, self.address, self._key.hex()))
            except MergeopsError as error:
                self._coming.discard(self._last)
                self._told.put(error)
                return

    def _send(self, worker: Hired, message: dict[str, Any]) -> None:
        try:
            worker.line.send(message)
        except OSError:
            # The thread that listens to it notices, too, and takes its unit back.
            worker.line.close()

    def _let_in(self) -> None:
        while not self._closed:
            try:
                end = self._listener.accept()
            except (OSError, EOFError):
                continue
            threading.Thread(target=self._serve, args=[end], daemon=True).start()

    def _serve(self, end: connection.Connection) -> None:
        """Listen to one worker until it hangs up."""
        worker: Hired | None = None
        reason = "it ended"
        try:
            line = greet(end, self._key)
            hello = line.receive()
            worker = Hired(int(hello["hello"]), line, str(hello["host"]))
            with self._lock:
                if self._closed:
                    line.send({"end": True})
                    return
                # One that an engine starts again under the same number takes its own place.
                self._forget(worker.number, "another one came in its place")
                self._coming.discard(worker.number)
                self._hired[worker.number] = worker
                self._make_room(worker.number)
            asked = questions(self._needs, self._probes.names)
            memory = self._launcher.memory
            own = {"host": str(worker), "memory": memory, "stage": self._stage}
            line.send({"check": asked, **own})
            while True:
                message = line.receive()
                worker.heard = time.monotonic()
                self._take(worker, message)
        except (OSError, EOFError, AuthenticationError, ValueError, KeyError, TypeError) as error:
            reason = str(error) or reason
        finally:
            end.close()
            if worker is not None:
                with self._lock:
                    if self._hired.get(worker.number) is worker and not self._closed:
                        self._forget(worker.number, self._why(worker.number) or reason)
                        self._hand_out()

    def _take(self, worker: Hired, message: Mapping[str, Any]) -> None:
        unit = worker.unit
        if "problems" in message:
            if message["problems"]:
                self._told.put(ConfigError("; ".join(message["problems"])))
                return
            with self._lock:
                self._stillborn = 0
                worker.is_ready = True
                self._hand_out()
        elif unit is None:
            return
        elif message.get("unit") == unit.name:
            done, total = int(message["done"]), int(message["total"])
            self._told.put(Advanced(unit, str(worker), done, total))
        elif unit.name in (message.get(key) for key in ("finished", "failed", "cancelled")):
            with self._lock:
                worker.unit = None
                if "finished" in message:
                    self._told.put(Finished(unit, str(worker), message["result"]))
                elif "failed" in message:
                    log = str(message["log"])
                    self._told.put(Failed(unit, str(worker), error_of(message), log))
                self._hand_out()

    def _make_room(self, came: int) -> None:
        """Where a worker came back that was preempted, call off one that was hired in its place
        and is not here yet; where all are here, it is not needed."""
        staying = sum(not worker.is_leaving for worker in self._hired.values())
        if staying > self.workers:
            self._hired[came].is_leaving = True
        elif self._coming and staying + len(self._coming) > self.workers:
            number = max(self._coming)
            self._coming.discard(number)
            self._launcher.stop(number)

    def _dismiss(self, number: int) -> None:
        """Let a worker end its unit, and give it no other."""
        worker = self._hired.get(number)
        if worker is None or worker.is_leaving:
            return
        worker.is_leaving = True
        self._hand_out()

    def _forget(self, number: int, reason: str) -> None:
        """Take back the unit of a worker that is gone."""
        worker = self._hired.pop(number, None)
        if worker is None or self._closed:
            return
        worker.line.close()
        unit, worker.unit = worker.unit, None
        if unit is None or unit.name not in self._open:
            return
        if not self._launcher.was_taken(number):
            self._deaths[unit.name] += 1
        self._told.put(Lost(unit, str(worker), reason))
        if self._deaths[unit.name] < MOST_DEATHS:
            self._waiting.appendleft(unit)
            return
        error = MergeError(
            f"{unit} ended {MOST_DEATHS} workers, the last one {worker}: {reason}; where memory "
            "was short, allow more for a worker, or run fewer on a machine"
        )
        # Not the unit's own error: what it left can be gone on with.
        error.__cause__ = ChildProcessError(reason)
        self._told.put(Failed(unit, str(worker), error))

    def _why(self, number: int) -> str:
        """What the engine knows of the end of a worker, which it may notice a little later."""
        for _ in range(10):
            ended = self._launcher.ended()
            self._note_ended({n: why for n, why in ended.items() if n != number})
            if number in ended:
                return ended[number]
            time.sleep(0.02)
        return ""

    def _note_ended(self, ended: Mapping[int, str]) -> None:
        for number, reason in ended.items():
            if number in self._coming:
                self._coming.discard(number)
                self._stillborn += 1
                if self._stillborn >= MOST_STILLBORN:
                    self._told.put(
                        ConfigError(f"workers end before they begin, the last one: {reason}")
                    )
                    return
            elif number in self._hired:
                self._forget(number, reason)
        if ended:
            self._hand_out()

    def _watch(self) -> None:
        while not self._closed:
            time.sleep(WATCH_S)
            with self._lock:
                if self._closed:
                    return
                try:
                    self._note_ended(self._launcher.ended())
                    for number in self._launcher.leaving():
                        self._dismiss(number)
                except MergeopsError as error:
                    self._told.put(error)
                    return
                now = time.monotonic()
                for worker in list(self._hired.values()):
                    if now - worker.heard > self._patience_s:
                        self._launcher.stop(worker.number)
                        self._forget(worker.number, f"it said nothing for {self._patience_s:g} s")
                        self._hand_out()
