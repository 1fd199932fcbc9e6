"""A run of mergeops, and what is written onto it: artifacts, text, tags and how it ended."""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops.redact import redact
from mergeops.store import Tracking, hidden_facts, run_name, tag_value
from mergeops.version import __version__

if TYPE_CHECKING:
    from mlflow.entities import Run

FIGURE = {"dpi": 150, "bbox_inches": "tight"}
"""How matplotlib writes a figure."""


@dataclass
class LoggedRun:
    """A run of mergeops."""

    tracking: Tracking
    run_id: str

    def log_text(self, text: str, artifact: str) -> None:
        """Write an artifact, e.g. ``leaderboard.md``, ``model_card.md`` or ``lineage.svg``."""
        self.tracking.client.log_text(self.run_id, text, artifact)

    def log_json(self, value: Any, artifact: str) -> None:
        """Write a value of JSON types, e.g. ``gate.json``, with credentials taken out of URIs."""
        self.log_text(json.dumps(redact(value), indent=2, ensure_ascii=False) + "\n", artifact)

    def log_work(self, spans: Sequence[Any], failed: Mapping[str, str]) -> None:
        """Write who did which unit when to workers.json, and what those that failed said."""
        if spans:
            self.log_json(spans, "workers.json")
        for unit, said in failed.items():
            self.log_text(redact(said), f"failed/{unit}.log")

    def log_figure(self, figure: Any, artifact: str) -> None:
        """Write a matplotlib figure, e.g. ``plots/scores.png``."""
        self.tracking.client.log_figure(self.run_id, figure, artifact, save_kwargs=FIGURE)

    def describe(self, markdown: str) -> None:
        """Set the text at the head of the run's page."""
        self.tracking.client.set_tag(self.run_id, "mlflow.note.content", tag_value(markdown))

    def set_tags(self, **tags: str) -> None:
        """Set tags that a reader of the run's page sees, each below ``mergeops.``."""
        from mlflow.entities import RunTag

        self.tracking.client.log_batch(
            self.run_id,
            tags=[RunTag(f"mergeops.{name}", tag_value(value)) for name, value in tags.items()],
        )

    def keep(self, **facts: str) -> None:
        """Keep facts that mergeops alone needs as tags of the run that its page does not show."""
        from mlflow.entities import RunTag

        tags = [RunTag(tag, value) for tag, value in hidden_facts(facts).items()]
        self.tracking.client.log_batch(self.run_id, tags=tags)

    def end_after(self, error: BaseException) -> None:
        """End the run KILLED where the user stopped it, else FAILED."""
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        self.tracking.client.set_terminated(self.run_id, "KILLED" if killed else "FAILED")


def create_run(tracking: Tracking, name: str, tags: Mapping[str, str]) -> Run:
    """Start a run of the experiment with the tags that every run of mergeops has, and ``tags``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    every_run = {
        "mlflow.runName": run_name(name),
        "mlflow.user": user,
        "mlflow.source.name": "mergeops",
        "mlflow.source.type": "LOCAL",
        **hidden_facts({"version": __version__}),
    }
    return tracking.client.create_run(
        tracking.experiment_id, tags={**every_run, **tags}, run_name=run_name(name)
    )
