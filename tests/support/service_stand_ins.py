"""What stands for MLflow in tests of the service's API and page: proposals, and accounts."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

from mergeops.errors import AwayError, ConfigError, GateRefusedError
from mergeops.promotion import Change, WaitingProposal
from mergeops.service.boards import ShownBoard
from mergeops.service.web.callers import Caller

HOSTILE = "<script>alert(1)</script>"
CHECK = {
    **{"reference": "champion:3", "kind": "better", "tasks": ["add"], "n": 500, "difference": 0.04},
    **{"low": 0.01, "high": 0.07, "p_value": 0.002, "threshold": 0.025, "rule": "p < level"},
    **{"outcome": "pass", "sentence": "better"},
}


class Accounts:
    """A stand-in for MLflow's: each is called as its role."""

    async def caller(self, credentials: str) -> Caller | None:
        name = base64.b64decode(credentials).decode().partition(":")[0]
        return Caller(name, frozenset({name}))


class Mlflow:
    """What the service asks MLflow for."""

    def __init__(self) -> None:
        self.waiting = [self._proposal("skills", 7), self._proposal(HOSTILE, 1)]
        self.decided: list[tuple[Any, ...]] = []
        self.deciders: list[str] = []
        self.is_away = False

    def _proposal(self, name: str, version: int) -> WaitingProposal:
        change = Change(name, "proposed", version, 3, "2026-01-02T03:04:05Z", "watch nightly")
        evidence = {"decision": "promote", "level": 0.025, "checks": [CHECK]}
        return WaitingProposal(change, "run", evidence, {"run": "http://mlflow/#/run"}, HOSTILE)

    def proposals(self) -> list[WaitingProposal]:
        if self.is_away:
            raise AwayError("cannot reach the MLflow server")
        return self.waiting

    def approve(self, name: str, version: int, reason: str | None, user: str) -> Change:
        if version != 7:
            raise GateRefusedError(f"version {version} was proposed by ann")
        self.deciders.append(user)
        self.decided.append(("approve", name, version, reason))
        return dataclasses.replace(self.waiting[0].change, kind="promote", by="ben")

    def reject(self, name: str, version: int, reason: str, user: str) -> Change:
        if not reason:
            raise ConfigError("the reason is empty; say why")
        self.deciders.append(user)
        self.decided.append(("reject", name, version, reason))
        return dataclasses.replace(self.waiting[0].change, kind="rejected", by="ben")

    def leaderboard(self, experiment: str) -> ShownBoard:
        return ShownBoard(problem="cannot reach the MLflow server")

    def plot(self, name: str, version: int) -> bytes:
        return b"\x89PNG"
