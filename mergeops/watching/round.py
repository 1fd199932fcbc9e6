"""One round of a watch: look, adopt, check, try, and propose what is better.

What a round learned is saved after each step, and every step may be repeated, so a round that is
killed goes on where it was. Merges are chosen on the dev part alone. The confirm part is opened
only for one merge at a time, only where dev speaks for it, at most so often a month, and each use
is counted by ``promotion`` for the life of the confirm part: the levels of all uses sum to alpha.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergeops import promotion
from mergeops.errors import GateRefusedError, MergeopsError
from mergeops.progress import Progress
from mergeops.recipe import Recipe, compose, parse_size
from mergeops.store import Tracking, connect, only_one
from mergeops.tools import Tools
from mergeops.watching.adopting import adopt_ended
from mergeops.watching.due import is_to_propose, is_to_search, uses_this_month
from mergeops.watching.poll import newly_ended
from mergeops.watching.spec import WatchSpec
from mergeops.watching.state import (
    DUPLICATE,
    KEPT,
    MISFIT,
    NOT_BETTER,
    WAITING,
    Best,
    Proposed,
    RoundRecord,
    SeenRun,
    WatchState,
)
from mergeops.watching.trying import (
    Contender,
    WatchBench,
    best_alone,
    gain_over,
    is_of_candidate,
    with_candidate,
)

AT_ONCE = 50
"""Runs that are adopted by one request."""


@dataclass(frozen=True)
class Round:
    """What became of a round."""

    number: int
    new: int
    usable: int
    trials: int
    proposed: str
    """NAME/VERSION; empty where nothing was."""
    note: str
    """In one line."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def run_round(
    spec: WatchSpec,
    state: WatchState,
    number: int,
    *,
    save: Callable[[WatchState], None],
    progress: Progress,
    config_dir: Path | None = None,
) -> Round:
    """Look once, and do all that follows.

    Args:
        spec: the watch.
        state: what it knows.
        number: of the round; one that was finished before does nothing.
        save: keeps what it knows; called after each step.
        config_dir: the operator's config directory.

    Raises:
        MergeopsError: MLflow is away, or the watch's recipe is wrong; what was learned is saved.
    """
    done = next((record for record in state.rounds if record.number == number), None)
    if done is not None:
        return Round(number, done.new, done.usable, done.trials, "", f"{done.note} (done before)")
    recipe = compose(spec.overrides, config_dir=config_dir)
    recipe = dataclasses.replace(recipe, promote=dataclasses.replace(recipe.promote, approval=True))
    tracking = connect(recipe.tracking)
    with only_one(f"the watch {spec.name}", "watch", tracking.uri, spec.name, wait=True):
        at_work = _AtWork(spec, state, number, recipe, tracking, save, progress)
        return at_work.go()


class _AtWork:
    def __init__(
        self,
        spec: WatchSpec,
        state: WatchState,
        number: int,
        recipe: Recipe,
        tracking: Tracking,
        save: Callable[[WatchState], None],
        progress: Progress,
    ) -> None:
        self._spec = spec
        self._state = state
        self._number = number
        self._recipe = recipe
        self._tracking = tracking
        self._save = save
        self._progress = progress
        self._began = time.monotonic()
        self._trials = 0
        self._tools = Tools(recipe, progress, tracking=tracking)
        self._bench = WatchBench(recipe, self._tools)

    def go(self) -> Round:
        """The whole round."""
        new, usable = self._look()
        said = [f"{new} new run(s), {usable} usable"] if new else ["nothing new"]
        waiting = self._state.waiting()
        proposed = ""
        if waiting and len(waiting) < self._spec.batch:
            said.append(f"{len(waiting)} of a batch of {self._spec.batch} wait")
        elif waiting or self._has_unfinished():
            standing, champion = self._try(waiting)
            if standing is not None:
                standing = self._searched(standing)
                proposed, note = self._propose(standing, champion)
                said.append(note)
        note = "; ".join(part for part in said if part)
        record = RoundRecord(self._number, _now(), new, usable, self._trials, self._spent_s(), note)
        self._keep(self._state.with_round(record))
        return Round(self._number, new, usable, self._trials, proposed, note)

    def _look(self) -> tuple[int, int]:
        """Find what ended, and adopt it."""
        new = usable = 0
        for experiment in self._spec.experiments:
            found, cursor = newly_ended(
                self._tracking,
                experiment,
                self._state.cursors.get(experiment, 0),
                self._state.runs,
                filter_string=self._spec.filter,
                silent_after_s=self._spec.silent_after_s,
            )
            for start in range(0, len(found), AT_ONCE):
                some = found[start : start + AT_ONCE]
                self._progress.step(f"{len(some)} run(s) of {experiment} ended; looking at them")
                adopted = adopt_ended(
                    self._tracking, experiment, some, self._number, self._recipe.path_map
                )
                new += len(adopted)
                usable += sum(run.outcome == WAITING for run in adopted)
                for run in adopted:
                    self._state = self._state.with_run(run)
                self._keep(self._state)
            cursors = {**self._state.cursors, experiment: cursor}
            self._state = dataclasses.replace(self._state, cursors=cursors)
        return new, usable

    def _try(self, waiting: list[SeenRun]) -> tuple[Contender | None, Contender | None]:
        """Add each candidate to the best merge, best first; what does not hurt stays."""
        champion = self._bench.champion()
        standing = self._standing(champion)
        version = champion.best.champion if champion is not None else None
        for candidate, alone in self._ranked(waiting, version):
            if self._is_spent():
                self._progress.step("the round's budget is spent; the rest waits")
                break
            if standing is None:
                standing = alone
                note = f"the first; {alone.scores.pooled:.3f} on dev"
                self._note(candidate, KEPT, note, best=alone.best)
            else:
                standing = self._added(standing, candidate)
        return standing, champion

    def _searched(self, standing: Contender) -> Contender:
        """The best of a small search around a merge that nothing was tried around yet."""
        budget = self._spec.budget
        if is_to_search(self._spec, standing.best) and not self._is_spent():
            before = standing.scores
            self._progress.step(f"searching around {standing.best.registered}")
            standing = self._bench.searched(standing, budget.search, budget.minutes)
            self._trials += 1
            gain, _ = gain_over(standing.scores, before, self._spec.dev_confidence)
            self._progress.step(f"best is {standing.best.registered}, {gain:+.3f} on dev")
            searched = dataclasses.replace(standing.best, is_searched=True)
            standing = dataclasses.replace(standing, best=searched)
        self._keep(dataclasses.replace(self._state, best=standing.best))
        return standing

    def _ranked(
        self, waiting: list[SeenRun], champion: int | None
    ) -> list[tuple[SeenRun, Contender]]:
        """The candidates that can be read and scored, the best alone first."""
        known = {run.sha256: run for run in self._state.runs.values() if run.sha256}
        scored = []
        for candidate in waiting:
            try:
                sha256 = self._bench.sha256(candidate)
                if (other := known.get(sha256)) is not None and other.run_id != candidate.run_id:
                    self._note(candidate, DUPLICATE, f"the very weights of {other.name}")
                    continue
                candidate = dataclasses.replace(candidate, sha256=sha256)
                known[sha256] = candidate
                self._state = self._state.with_run(candidate)
                scored.append((candidate, self._bench.single(candidate, champion)))
            except MergeopsError as error:
                if not is_of_candidate(error):
                    raise
                self._note(candidate, MISFIT, str(error))
        self._keep(self._state)
        return sorted(scored, key=lambda pair: -pair[1].merit)

    def _added(self, standing: Contender, candidate: SeenRun) -> Contender:
        try:
            tried = self._bench.merged(with_candidate(standing.best, candidate))
        except MergeopsError as error:
            if not is_of_candidate(error):
                raise
            self._note(candidate, MISFIT, str(error))
            return standing
        self._trials += 1
        gain, _ = gain_over(tried.scores, standing.scores, self._spec.dev_confidence)
        if tried.merit >= standing.merit:
            self._note(candidate, KEPT, f"{tried.best.registered}", gain, best=tried.best)
            return tried
        self._note(candidate, NOT_BETTER, f"tried in {tried.best.registered}", gain)
        return standing

    def _standing(self, champion: Contender | None) -> Contender | None:
        """The best so far, where it was found against the champion of now; else the champion."""
        best = self._state.best
        version = champion.best.champion if champion is not None else None
        if best is None or best.champion != version:
            return champion
        if len(best.sources) > 1:
            return self._bench.merged(best)
        [uri] = best.sources.values()
        run = next((run for run in self._state.runs.values() if run.uri == uri), None)
        return self._bench.single(run, version) if run is not None else champion

    def _propose(self, standing: Contender, champion: Contender | None) -> tuple[str, str]:
        """Open the confirm part, where dev speaks for it and the budget has a use left."""
        best, spec = standing.best, self._spec
        if not best.registered or standing is champion:
            self._hold(best.plan_digest)
            return "", "no merge is better than what there is"
        if any(one.plan_digest == best.plan_digest for one in self._state.proposed):
            return "", f"{best.registered} was proposed before"
        reference = champion or best_alone(standing)
        if reference is not None:
            gain, low = gain_over(standing.scores, reference.scores, spec.dev_confidence)
            if low <= 0:
                self._hold(best.plan_digest)
                return "", (
                    f"{best.registered} gains {gain:+.3f} on dev, at least {low:+.3f} with "
                    f"confidence {spec.dev_confidence:g}: kept, not proposed"
                )
        used = uses_this_month(self._state)
        if used >= spec.budget.confirm_uses:
            return (
                "",
                f"{best.registered} waits: the confirm part was opened {used} time(s) this month",
            )
        name, _, version = best.registered.rpartition("/")
        waits = promotion.read_history(self._tracking, name).waiting
        if waits is not None and waits.to != int(version):
            return "", f"{best.registered} waits: version {waits.to} is not decided on yet"
        return self._open(standing, name, int(version))

    def _open(self, standing: Contender, name: str, version: int) -> tuple[str, str]:
        registered, digest = standing.best.registered, standing.best.plan_digest
        try:
            outcome = promotion.promote(
                self._recipe, name, self._progress, version=version, user=f"watch {self._spec.name}"
            )
        except GateRefusedError as error:
            self._record(Proposed(digest, registered, _now(), str(error), opened=False))
            return "", f"{registered}: {error}"
        decision = "proposed"
        if outcome.change is None and outcome.verdict is not None:
            decision = outcome.verdict.decision
        expected = tuple(expectation.sentence() for expectation in outcome.expectations)
        level = outcome.use.level if outcome.use else None
        self._record(
            Proposed(digest, registered, _now(), decision, level, outcome.use is not None, expected)
        )
        if decision == "proposed":
            return registered, f"{registered} is proposed, and waits for approval"
        return "", f"{registered}: the gate says {decision}"

    def _has_unfinished(self) -> bool:
        """Whether a merge of an earlier round was not searched around or put forward yet, as the
        budget was spent."""
        name = self._recipe.tracking.registered_model
        return is_to_search(self._spec, self._state.best) or is_to_propose(
            self._spec, self._state, self._tracking, name
        )

    def _hold(self, plan_digest: str) -> None:
        self._keep(dataclasses.replace(self._state, held=plan_digest))

    def _record(self, proposed: Proposed) -> None:
        self._keep(dataclasses.replace(self._state, proposed=(*self._state.proposed, proposed)))

    def _note(
        self,
        candidate: SeenRun,
        outcome: str,
        note: str,
        gain: float | None = None,
        best: Best | None = None,
    ) -> None:
        """What became of a candidate, and the best merge with it: a kill is not between them."""
        known = self._state.runs.get(candidate.run_id, candidate)
        changed = dataclasses.replace(known, outcome=outcome, note=note[:500], gain=gain)
        best = best or self._state.best
        self._keep(dataclasses.replace(self._state.with_run(changed), best=best))
        self._progress.step(f"{candidate.name}: {outcome}, {note}")

    def _keep(self, state: WatchState) -> None:
        self._state = state
        self._save(state)

    def _is_spent(self) -> bool:
        budget = self._spec.budget
        if budget.bytes and self._tools.spent.written >= parse_size("budget.bytes", budget.bytes):
            return True
        return self._trials >= budget.trials or self._spent_s() > 60 * budget.minutes

    def _spent_s(self) -> float:
        return round(time.monotonic() - self._began, 1)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
