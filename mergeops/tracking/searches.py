"""A search is one run with its trials nested below it."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.errors import AwayError, TrackingError
from mergeops.scores import Scores, estimate
from mergeops.store import Tracking, flatten, hidden_facts, log_params, run_filters, tag_value
from mergeops.tracking.logged_run import LoggedRun, create_run
from mergeops.tracking.trial_inputs import PARENT_RUN


@dataclass
class SearchRun(LoggedRun):
    """The run of a search."""

    scores: list[float] = field(default_factory=list)
    """Of the trials that this process has come by, in order."""
    _candidates: set[str] | None = None
    """Numbers of the candidates that have a run; None before it was looked."""

    def log_best(self, run_id: str, scores: Scores) -> None:
        """Name the best trial and its pooled dev score, with the score's interval."""
        client = self.tracking.client
        self.keep(best_run_id=run_id)
        pooled = estimate(scores)
        named = {"best/pooled": pooled.value}
        if pooled.interval is not None:
            named["best/pooled_low"], named["best/pooled_high"] = pooled.interval
        logged = client.get_run(self.run_id).data.metrics
        for name, value in named.items():
            if logged.get(name) != value:
                client.log_metric(self.run_id, name, value)

    def log_trial(self, score: float, *, higher_is_better: bool = True) -> None:
        """Add the next trial's pooled score to the curves, to be seen while the search runs.

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
        choose = max if higher_is_better else min
        worst = -math.inf if higher_is_better else math.inf
        finite = [score if math.isfinite(score) else worst for score in scores]
        best = list(itertools.accumulate(finite, choose))
        named = {"steps/trial": scores, "steps/best": best}
        self.log_curves(
            {
                name: [(step, v) for step, v in enumerate(values, 1) if math.isfinite(v)]
                for name, values in named.items()
            }
        )

    def earlier_reports(self, sources: str) -> list[dict[str, Any]]:
        """``study.json`` of other studies on the same sources, the newest first; this one is
        marked as on them, too.

        Args:
            sources: digest of what is merged.
        """
        runs = self.tracking.search_runs(*run_filters("search", study_sources=sources))
        self.keep(study_sources=sources)
        reports = []
        for run in sorted(runs, key=lambda run: -run.info.start_time):
            if run.info.run_id == self.run_id:
                continue
            with tempfile.TemporaryDirectory() as folder:
                try:
                    path = self.tracking.client.download_artifacts(
                        run.info.run_id, "study.json", folder
                    )
                    reports.append(json.loads(Path(path).read_text(encoding="utf-8")))
                # One that did not come to its end has none.
                except (TrackingError, OSError, ValueError):
                    continue
        return reports

    def log_curves(self, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        """Log metrics by step; what is there already stays.

        Args:
            curves: name -> (step, value), e.g. the answers asked and the best score by then.
        """
        from mlflow.entities import Metric

        client, now = self.tracking.client, int(time.time() * 1000)
        new = []
        for name, points in curves.items():
            logged = {(m.step, m.value) for m in client.get_metric_history(self.run_id, name)}
            new += [Metric(name, v, now, step) for step, v in points if (step, v) not in logged]
        for start in range(0, len(new), 500):
            client.log_batch(self.run_id, metrics=new[start : start + 500])

    def log_candidate(
        self,
        name: str,
        *,
        number: int,
        values: Mapping[str, object],
        state: str,
        answers: int,
        pooled: float,
        reason: str = "",
    ) -> None:
        """Add a light run below the search: what was proposed and how it did, without artifacts.

        A search that goes on after a crash comes by its candidates again; each has one run.

        Args:
            number: of the proposal, from 1.
            values: JSON types, logged as parameters.
            state: whole, dropped or failed.
            answers: items that were asked.
            pooled: the score on them; NaN has no metric.
        """
        from mlflow.entities import Metric, Param

        if self._candidates is None:
            runs = self.tracking.search_runs(*run_filters("candidate", candidate_of=self.run_id))
            self._candidates = {run.data.tags.get("mergeops.candidate", "") for run in runs}
        if str(number) in self._candidates:
            return
        tags = {
            PARENT_RUN: self.run_id,
            "mergeops.role": "candidate",
            "mergeops.candidate": str(number),
            "mergeops.state": state,
            **hidden_facts({"candidate_of": self.run_id}),
        }
        if reason:
            tags["mergeops.error"] = tag_value(reason)
        run = create_run(self.tracking, name, tags)
        client, now = self.tracking.client, int(time.time() * 1000)
        metrics = [Metric("answers", answers, now, 0)]
        if math.isfinite(pooled):
            metrics.append(Metric("pooled", pooled, now, 0))
        params = [Param(name, text) for name, text in flatten(values).items()]
        client.log_batch(run.info.run_id, metrics=metrics, params=params)
        client.set_terminated(run.info.run_id, "FAILED" if state == "failed" else "FINISHED")
        self._candidates.add(str(number))


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
    earlier = tracking.search_runs(*run_filters("search", search_digest=digest))
    if earlier:
        search = SearchRun(tracking, earlier[0].info.run_id)
        client.update_run(search.run_id, "RUNNING")
    else:
        tags = {"mergeops.role": "search", **hidden_facts({"search_digest": digest})}
        search = SearchRun(tracking, create_run(tracking, name, tags).info.run_id)
    log_params(client, search.run_id, settings)
    try:
        yield search
    except BaseException as error:
        if not isinstance(error, AwayError):
            try:
                search.end_after(error)
            except TrackingError:
                # The error that stopped the search matters more.
                raise error from None
        raise
    client.set_terminated(search.run_id, "FINISHED")
