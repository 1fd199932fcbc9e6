"""Sends a run's facts to MLflow from a thread of its own, so that training never waits for it."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from mergeops.redact import redacted_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

MOST_METRICS = 10_000
"""Values kept while the server is away; the oldest go first."""
PER_BATCH = 500
CONNECT_S = 3

_log = logging.getLogger("mergeops")


def check_answers(uri: str) -> None:
    """Refuse a server that nobody answers at, before MLflow's own minutes of retries.

    Raises:
        OSError: as the connection says.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.scheme in getproxies():
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname, port), timeout=CONNECT_S).close()


@dataclass
class _Unsent:
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    """(name, value, step, milliseconds since 1970)."""
    status: str | None = None

    def is_empty(self) -> bool:
        return not (self.tags or self.params or self.metrics or self.status)

    def before(self, later: _Unsent) -> _Unsent:
        """Both, where what is said later wins."""
        return _Unsent(
            self.tags | later.tags,
            self.params | later.params,
            (self.metrics + later.metrics)[-MOST_METRICS:],
            later.status or self.status,
        )


class Courier:
    """Sends to one run; what cannot be sent is kept and tried again with what comes next.

    Args:
        connect: makes the client; called in the thread, since a new database takes seconds.
        open_run: makes the run; called in the thread, unless ``run_id`` is given.
        run_id: the run, where there is one.
        collect: facts that take a while to find; called in the thread, once.
    """

    def __init__(
        self,
        connect: Callable[[], MlflowClient],
        open_run: Callable[[MlflowClient], str],
        run_id: str | None = None,
        collect: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.run_id = run_id
        self.collected: Mapping[str, str] = {}
        """What ``collect`` found, once it has."""
        self._connect = connect
        self._client: MlflowClient | None = None
        self._open_run = open_run
        self._collect = collect
        self._unsent = _Unsent()
        self._changed = threading.Condition()
        self._asked = 0
        self._tried = 0
        self._has_warned = False
        threading.Thread(target=self._work, name="mergeops-courier", daemon=True).start()

    def send(
        self,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        metrics: list[tuple[str, float, int, int]] | None = None,
        status: str | None = None,
    ) -> None:
        """Hand over facts and return at once."""
        facts = _Unsent(dict(tags or {}), dict(params or {}), list(metrics or []), status)
        with self._changed:
            self._unsent = self._unsent.before(facts)
            self._asked += 1
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until everything handed over was tried.

        Returns:
            Whether all of it arrived.
        """
        with self._changed:
            asked = self._asked
            self._changed.wait_for(lambda: self._tried >= asked, seconds)
            return self._tried >= asked and self._unsent.is_empty()

    def warn(self, error: object) -> None:
        """Say once that facts are not arriving."""
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "mergeops: this run's facts cannot be logged to MLflow (%s); training goes on, and "
                "they are tried again with the next checkpoint",
                redacted_line(error),
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._tried)
                asked, unsent, self._unsent = self._asked, self._unsent, _Unsent()
            try:
                self._deliver(unsent)
            except Exception as error:
                self.warn(error)
            with self._changed:
                self._unsent = unsent.before(self._unsent)
                self._tried = asked
                self._changed.notify_all()
            self._look_up()

    def _deliver(self, unsent: _Unsent) -> None:
        """Send, and take out of ``unsent`` what has arrived."""
        from mlflow.entities import Metric, Param, RunTag

        if self._client is None:
            self._client = self._connect()
        check_answers(self._client.tracking_uri)
        client = self._client
        if self.run_id is None:
            self.run_id = self._open_run(client)
        if unsent.tags:
            tags = [RunTag(name, value) for name, value in unsent.tags.items()]
            client.log_batch(self.run_id, tags=tags)
            unsent.tags.clear()
        while unsent.metrics:
            batch = unsent.metrics[:PER_BATCH]
            metrics = [Metric(name, value, at, step) for name, value, step, at in batch]
            client.log_batch(self.run_id, metrics=metrics)
            del unsent.metrics[:PER_BATCH]
        if unsent.status:
            client.set_terminated(self.run_id, unsent.status)
            unsent.status = None
        # Last, since MLflow refuses a whole batch for one parameter that is there with another
        # value: the script's own, or an earlier training's in the same run. The first one stays.
        if unsent.params:
            logged = client.get_run(self.run_id).data.params
            params = [Param(n, value) for n, value in unsent.params.items() if n not in logged]
            client.log_batch(self.run_id, params=params)
            unsent.params.clear()

    def _look_up(self) -> None:
        collect, self._collect = self._collect, dict
        try:
            tags = collect()
        except Exception as error:
            return self.warn(error)
        if tags:
            self.collected = tags
            self.send(tags)
