"""A search is one run with its trials nested below it."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergeops.errors import AwayError, TrackingError
from mergeops.evaluate.intervals import estimate
from mergeops.secrets import redact
from mergeops.tracking.client import log_params
from mergeops.tracking.keys import flatten, run_name, tag_value
from mergeops.tracking.parents import run_tags
from mergeops.tracking.scores import search_runs, with_tags

if TYPE_CHECKING:
    from mergeops.evaluate import Scores
    from mergeops.tracking.connection import Tracking


@dataclass
class SearchRun:
    """The run of a search."""

    tracking: Tracking
    run_id: str
    scores: list[float] = field(default_factory=list)
    """Of the trials that this process has come by, in order."""

    def log_text(self, text: str, artifact: str) -> None:
        """Write an artifact, e.g. ``steps.md``."""
        self.tracking.client.log_text(self.run_id, text, artifact)

    def log_json(self, value: Any, artifact: str) -> None:
        """Write a value of JSON types, e.g. ``steps.json``."""
        self.log_text(json.dumps(redact(value), indent=2, ensure_ascii=False) + "\n", artifact)

    def log_figure(self, figure: Any, artifact: str) -> None:
        """Write a matplotlib figure, e.g. ``plots/steps.png``."""
        save = {"dpi": 150, "bbox_inches": "tight"}
        self.tracking.client.log_figure(self.run_id, figure, artifact, save_kwargs=save)

    def describe(self, markdown: str) -> None:
        """Set the text at the head of the run's page."""
        self.tracking.client.set_tag(self.run_id, "mlflow.note.content", tag_value(markdown))

    def log_best(self, run_id: str, scores: Scores) -> None:
        """Name the best trial and its pooled dev score, with the score's interval."""
        client = self.tracking.client
        client.set_tag(self.run_id, "mergeops.best_run_id", run_id)
        found = estimate(scores)
        named = {"best/pooled": found.value}
        if found.interval is not None:
            named["best/pooled_low"], named["best/pooled_high"] = found.interval
        there = client.get_run(self.run_id).data.metrics
        for name, value in named.items():
            if there.get(name) != value:
                client.log_metric(self.run_id, name, value)

    def log_trial(self, score: float, *, higher_is_better: bool = True) -> None:
        """Add the next trial's pooled score to the curves, for who looks on while the search runs.

        A search that goes on after a crash comes by its finished trials again: what is logged
        already stays as it is.
        """
        self.scores.append(score)
        self.log_steps(self.scores, higher_is_better=higher_is_better)

    def log_steps(self, scores: Sequence[float], *, higher_is_better: bool = True) -> None:
        """Log the trials' pooled scores in their order, and the best so far, as two curves.

        Writes the metrics steps/trial and steps/best, where step N is the N-th trial; a score that
        is not finite has no point. What is not there yet is logged.
        """
        from mlflow.entities import Metric

        choose = max if higher_is_better else min
        worst = -math.inf if higher_is_better else math.inf
        finite = [score if math.isfinite(score) else worst for score in scores]
        best = list(itertools.accumulate(finite, choose))
        client, now = self.tracking.client, int(time.time() * 1000)
        new: list[Metric] = []
        for name, values in (("steps/trial", scores), ("steps/best", best)):
            there = {(m.step, m.value) for m in client.get_metric_history(self.run_id, name)}
            new += [
                Metric(name, value, now, step)
                for step, value in enumerate(values, 1)
                if math.isfinite(value) and (step, value) not in there
            ]
        for start in range(0, len(new), 500):
            client.log_batch(self.run_id, metrics=new[start : start + 500])


@contextmanager
def search_run(
    tracking: Tracking, name: str, digest: str, settings: Mapping[str, object]
) -> Iterator[SearchRun]:
    """The run of a search for the block: found by its digest, or started.

    Args:
        digest: names the search: equal digests are the same search, continued.
        settings: JSON types, logged as parameters.
    """
    client = tracking.client
    found = search_runs(tracking, with_tags(search_digest=digest, role="search"))
    if found:
        run_id = str(found[0].info.run_id)
        client.update_run(run_id, "RUNNING")
    else:
        tags = {
            **run_tags(name),
            "mergeops.role": "search",
            "mergeops.search_digest": digest,
        }
        created = client.create_run(tracking.experiment_id, tags=tags, run_name=run_name(name))
        run_id = str(created.info.run_id)
    log_params(client, run_id, flatten(settings))
    try:
        yield SearchRun(tracking, run_id)
    except BaseException as error:
        if not isinstance(error, AwayError):
            killed = isinstance(error, KeyboardInterrupt | SystemExit)
            try:
                client.set_terminated(run_id, "KILLED" if killed else "FAILED")
            except TrackingError:
                # The error that stopped the search matters more.
                raise error from None
        raise
    client.set_terminated(run_id, "FINISHED")
