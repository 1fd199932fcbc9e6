"""Proposals that wait for a second user, each with the evidence that it rests on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.errors import TrackingError
from mergeops.promotion.audit import Change
from mergeops.promotion.changes import CHALLENGER, proposal
from mergeops.store import Tracking, own_tags, pages
from mergeops.tracking import find_version


@dataclass(frozen=True)
class WaitingProposal:
    """A version that somebody proposed, and nobody has decided on."""

    change: Change
    run_id: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """``gate.json`` of the trial; empty where it cannot be read."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Pages in MLflow: ``run`` and ``version``."""
    description: str = ""
    """Of the version, in Markdown."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "name": self.change.name,
            "version": self.change.to,
            "champion": self.change.came_from,
            "proposed_by": self.change.by,
            "at": self.change.at,
            "reason": self.change.reason,
            "forced": self.change.forced,
            "evidence_sha256": self.change.evidence_sha256,
            "run_id": self.run_id,
            "evidence": dict(self.evidence),
            "links": dict(self.links),
        }


def waiting_proposals(tracking: Tracking) -> list[WaitingProposal]:
    """All that wait, of every registered model, oldest first.

    Raises:
        TrackingError: the server cannot be asked.
    """
    found = []
    for page in pages(tracking.client.search_registered_models, max_results=100):
        for model in page:
            if CHALLENGER in (model.aliases or {}):
                change = proposal(tracking, model.name)
                if change is not None:
                    found.append(_with_evidence(tracking, change))
    return sorted(found, key=lambda waiting: waiting.change.at)


def read_trial_file(tracking: Tracking, run_id: str, name: str) -> bytes:
    """A small file of a trial's run.

    Raises:
        TrackingError: it is not there.
    """
    with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
        return Path(tracking.client.download_artifacts(run_id, name, folder)).read_bytes()


def _with_evidence(tracking: Tracking, change: Change) -> WaitingProposal:
    version = find_version(tracking, change.name, change.to)
    run_id = str(version.run_id or own_tags(version.tags).get("mergeops.run_id", ""))
    evidence: dict[str, Any] = {}
    try:
        evidence = json.loads(read_trial_file(tracking, run_id, "gate.json"))
    except (TrackingError, ValueError, OSError):
        # What was removed is said to be missing by who shows it.
        evidence = {}
    links = tracking.links(run_id, change.name, change.to)
    return WaitingProposal(change, run_id, evidence, links, str(version.description or ""))
