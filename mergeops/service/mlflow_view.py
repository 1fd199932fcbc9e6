"""What the service knows of MLflow: proposals and their decisions, and the leaderboard.

MLflow's client waits; whoever serves many calls this from a thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mergeops import promotion
from mergeops.errors import ConfigError, MergeopsError
from mergeops.progress import Progress
from mergeops.promotion import WaitingProposal, read_trial_file, waiting_proposals
from mergeops.recipe import Recipe, compose
from mergeops.service.boards import Boards, ShownBoard, read_apart
from mergeops.store import Tracking, connect_to_server
from mergeops.tracking import find_version

FRESH_S = 10.0
"""How long an answer of MLflow's is shown again."""
PLOT = "plots/scores.png"


T = TypeVar("T")


@dataclass
class _Kept:
    value: Any
    at: float


class Registry:
    """MLflow as the service sees it.

    Args:
        config_dir: the operator's config directory: server, experiment, hooks.
    """

    def __init__(self, config_dir: Path | None = None) -> None:
        self._config_dir = config_dir
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()
        self._boards = Boards(lambda name: read_apart(self.settings().tracking, name))

    def settings(self) -> Recipe:
        """What the operator's config says."""
        return self._fresh("settings", lambda: compose([], config_dir=self._config_dir), 60.0)

    def connection(self) -> Tracking:
        """To the server."""
        tracking = self.settings().tracking
        return self._fresh("connection", lambda: connect_to_server(tracking), 60.0)

    def prepare(self) -> None:
        """Have what a first view needs: libraries, settings, connection. Of what is wrong, the view
        says it."""
        with suppress(MergeopsError):
            self.connection()

    def proposals(self) -> list[WaitingProposal]:
        """What waits for a decision.

        Raises:
            TrackingError: MLflow cannot be asked.
        """
        return self._fresh("proposals", lambda: waiting_proposals(self.connection()))

    def leaderboard(self, experiment: str = "") -> ShownBoard:
        """Everything that was scored in an experiment, as it was read last.

        Args:
            experiment: its name; empty takes the one of the operator's config.

        Raises:
            ConfigError: the operator's config is wrong.
        """
        return self._boards.shown(experiment or self.settings().tracking.experiment)

    def approve(self, name: str, version: int, reason: str | None, user: str) -> promotion.Change:
        """Make a proposed version the champion.

        Raises:
            GateRefusedError: the proposer is who approves.
            TrackingError: nothing waits, or another version.
        """
        settings = self.settings()
        hooks = promotion.configured(settings.promote.hooks)
        with promotion.registry(settings, name, Progress(quiet=True)) as tracking:
            change = promotion.approve(
                tracking, name, user=user, version=version, reason=reason, hooks=hooks
            )
        self.forget()
        return change

    def reject(self, name: str, version: int, reason: str, user: str) -> promotion.Change:
        """Close a proposal.

        Raises:
            ConfigError: there is no reason.
            TrackingError: nothing waits, or another version.
        """
        if not reason.strip():
            raise ConfigError("the reason is empty; say why, for the proposer reads it")
        with promotion.registry(self.settings(), name, Progress(quiet=True)) as tracking:
            change = promotion.reject(tracking, name, user=user, reason=reason, version=version)
        self.forget()
        return change

    def plot(self, name: str, version: int) -> bytes:
        """The picture of a version's scores, as PNG.

        Raises:
            TrackingError: there is none.
        """

        def read() -> bytes:
            tracking = self.connection()
            run_id = str(find_version(tracking, name, version).run_id)
            return read_trial_file(tracking, run_id, PLOT)

        return self._fresh(f"plot {name} {version}", read, 300.0)

    def forget(self) -> None:
        """Ask MLflow again for all that may have changed."""
        with self._lock:
            for key in [key for key in self._kept if key.startswith("proposals")]:
                del self._kept[key]

    def _fresh(self, key: str, read: Callable[[], T], fresh_s: float = FRESH_S) -> T:
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None and time.monotonic() - kept.at < fresh_s:
            found: T = kept.value
            return found
        value = read()
        with self._lock:
            if len(self._kept) > 200:
                self._kept.clear()
            self._kept[key] = _Kept(value, time.monotonic())
        return value
