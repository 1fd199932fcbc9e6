"""One study: what an Optuna sampler proposes is tried out, and told how good it was.

The study itself is never loaded from disk. The same seed proposes the same candidates, if it is
asked and told in the same order, which is kept; and the scores of those that were tried before a
crash are found. So going through it again is going on.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError
from mergeops.scores import estimate
from mergeops.search.baselines import Baselines
from mergeops.search.beforehand import clock
from mergeops.search.bench import Bench, Candidate, Cost, Way
from mergeops.search.crew import Alone, Assignment, Crew, TriedOut
from mergeops.search.objectives import front, knee
from mergeops.search.order import ASK, TELL, Order
from mergeops.search.proposal import Proposal
from mergeops.search.racing import WAITING, RaceVerdict, Stages
from mergeops.search.space import Choices, label_of
from mergeops.search.spending import Budget
from mergeops.tracking import SearchRun


@dataclass(kw_only=True)
class Study:
    """A study over one space.

    Args:
        space: what the sampler chooses from.
        bench: merges and scores in this process.
        crew: tries out what is proposed.
        baselines: what has to be beaten.
        log: the run of the search in MLflow.
        budget: when nothing new is begun.
        items: of the dev part.
    """

    space: Choices
    bench: Bench
    crew: Crew
    baselines: Baselines
    log: SearchRun
    budget: Budget
    items: int
    proposals: list[Proposal] = field(default_factory=list)
    spans: list[dict[str, Any]] = field(default_factory=list)
    """Which worker was busy with what, when (seconds since the epoch) and for how long."""
    utilisation: float | None = None
    """Share of the workers' time, of each since its first trial, spent merging or scoring."""
    _optuna: Any = None
    _known: dict[str, tuple[float, ...]] = field(default_factory=dict)
    _began: float = 0.0
    _before: Cost = field(default_factory=Cost)
    """What was spent when the first trial began."""

    def run_trials(self, sampler: Any, trials: int, first: Sequence[Mapping[str, Any]]) -> None:
        """Try out what the sampler proposes, and then what was left waiting.

        Args:
            sampler: Optuna's.
            trials: how many.
            first: values that are tried before the sampler's own.

        Raises:
            ConfigError, SourceError, TrackingError: what would stop every candidate.
        """
        import optuna

        self._began, self._before = time.monotonic(), dataclasses.replace(self.bench.cost)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        up = optuna.study.StudyDirection.MAXIMIZE
        directions = [up] * len(self.bench.race.objectives)
        with _no_warnings():
            self._optuna = optuna.create_study(directions=directions, sampler=sampler)
            self._tell_baselines()
            for values in first[:trials]:
                self._optuna.enqueue_trial(dict(values), user_attrs={"earlier study": True})
            self._go_on(trials)
        self._settle()
        busy = self.bench.cost.seconds - self._before.seconds
        self.utilisation = round(busy / self.crew.worker_seconds, 3) if busy else None

    def _go_on(self, trials: int) -> None:
        order, alone = Order(self.bench.folder / "order.jsonl"), Alone(self.bench)
        pending: dict[int, Proposal] = {}
        for event, number in order.read():
            if event == ASK and number <= trials:
                pending[number] = self._ask(number)
            elif event == TELL and number in pending:
                self._end(pending.pop(number), alone, trials)
        for proposal in pending.values():
            self._begin(proposal, self.crew)
        while True:
            while (
                len(self.proposals) < trials
                and len(pending) < self.crew.at_once
                and not self.is_spent
            ):
                proposal = self._ask(len(self.proposals) + 1)
                pending[proposal.number] = proposal
                order.note(ASK, proposal.number)
                self._begin(proposal, self.crew)
            if not pending:
                return
            refused = next((n for n, p in pending.items() if p.reason), None)
            outcome = self.crew.next() if refused is None else TriedOut(refused, None)
            proposal = pending.pop(outcome.key)
            self._take(proposal, outcome)
            order.note(TELL, proposal.number)
            self._tell(proposal, trials, outcome.worker)

    def _end(self, proposal: Proposal, crew: Crew, trials: int) -> None:
        """Try out a proposal that was told of before; its scores are found."""
        self._begin(proposal, crew)
        if not proposal.reason:
            self._take(proposal, crew.next())
        self._tell(proposal, trials)

    def keep(self, file: Path) -> None:
        """Write the study as Optuna's journal, which optuna-dashboard opens, and log it."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        file.unlink(missing_ok=True)
        with _no_warnings():
            storage = JournalStorage(JournalFileBackend(str(file)))
            optuna.copy_study(
                from_study_name=self._optuna.study_name,
                from_storage=self._optuna._storage,
                to_storage=storage,
                to_study_name="mergeops",
            )
        self.log.log_text(file.read_text(encoding="utf-8"), "optuna.log")

    @property
    def optuna(self) -> Any:
        """Optuna's own study, for its pictures."""
        return self._optuna

    @property
    def candidates(self) -> list[Candidate]:
        """Everything that was tried, each merge once, as far as it was asked at most."""
        once: dict[str, Candidate] = {}
        for each in [*self.baselines.tried, *(p.candidate for p in self.proposals)]:
            if each is not None:
                known = once.setdefault(each.plan_digest, each)
                if max(each.stages) > max(known.stages):
                    once[each.plan_digest] = each
        return list(once.values())

    @property
    def answers(self) -> int:
        """Items that candidates were asked."""
        return sum(candidate.answers for candidate in self.candidates)

    @property
    def is_spent(self) -> bool:
        """Whether the budget is."""
        seconds = sum(candidate.cost.seconds for candidate in self.candidates)
        return self.budget.is_spent(self.answers / self.items, seconds / self.crew.workers)

    @property
    def whole(self) -> list[Candidate]:
        """Every candidate that was asked everything and keeps all limits, the best first.

        With several objectives the knee of the front is the first, then the front, then the rest.
        """
        race = self.bench.race
        values = {
            c.plan_digest: self._values(c)
            for c in self.candidates
            if c.is_whole and not race.broken(c.stages)
        }
        finite = {d: v for d, v in values.items() if all(map(math.isfinite, v))}
        by_digest = {c.plan_digest: c for c in self.candidates}
        ranked = sorted(finite, key=lambda d: ([-v for v in finite[d]], by_digest[d].label))
        if len(race.objectives) > 1 and finite:
            leading = front(finite)
            best = knee({digest: finite[digest] for digest in leading})
            ranked = list(dict.fromkeys([best, *leading, *ranked]))
        return [by_digest[digest] for digest in ranked]

    def _values(self, candidate: Candidate) -> tuple[float, ...]:
        """Of one that was asked everything; counted once."""
        if candidate.plan_digest not in self._known:
            self._known[candidate.plan_digest] = self.bench.race.values_of(candidate.stages)
        return self._known[candidate.plan_digest]

    def _tell_baselines(self) -> None:
        """Let the sampler learn from those baselines that its space has."""
        for name, values in self.baselines.values(self.space):
            candidate = self.baselines.candidates.get(name)
            merits = self._merits(candidate) if candidate else (math.nan,)
            if not all(map(math.isfinite, merits)):
                continue
            self._optuna.enqueue_trial(values, user_attrs={"baseline": name})
            trial = self._optuna.ask()
            self.space.drawn(trial)
            self._constrain(trial, candidate)
            self._optuna.tell(trial, list(merits))

    def _ask(self, number: int) -> Proposal:
        trial = self._optuna.ask()
        proposal = Proposal(number=number, values=self.space.drawn(trial), trial=trial)
        try:
            self.space.made(proposal.values)
        except ConfigError as error:
            proposal.reason = str(error)
        self.proposals.append(proposal)
        return proposal

    def _begin(self, proposal: Proposal, crew: Crew) -> None:
        if not proposal.reason:
            crew.submit(self._job(proposal))

    def _job(self, proposal: Proposal, reached: float = 0.0) -> Assignment:
        way = Way(may_wait=not reached, is_raced=len(self.bench.race.shares) > 1, reached=reached)
        return Assignment(proposal.number, proposal.label, self.space.made(proposal.values), way)

    def _take(self, proposal: Proposal, outcome: TriedOut) -> None:
        """Note what became of a proposal; one that was asked everything may lead from now on."""
        candidate = outcome.candidate
        if outcome.worker:
            span = {"began": round(outcome.began, 3), "seconds": round(outcome.seconds, 3)}
            self.spans.append({"worker": outcome.worker, "candidate": proposal.label, **span})
        if outcome.log:
            self.log.log_work([], {str(proposal.number): outcome.log})
        if candidate is not None and not all(map(math.isfinite, self._merits(candidate))):
            candidate, proposal.reason = None, "its score is not finite"
        else:
            proposal.reason = proposal.reason or outcome.reason
        proposal.candidate = candidate
        if candidate is not None and candidate.is_whole:
            self.bench.race.finish(candidate.plan_digest, candidate.stages)

    def _tell(self, proposal: Proposal, trials: int, worker: str = "") -> None:
        from optuna.trial import TrialState

        trial, candidate = proposal.trial, proposal.candidate
        if candidate is None:
            trial.set_user_attr("reason", proposal.reason)
            self._optuna.tell(trial, state=TrialState.FAIL)
        else:
            if not candidate.is_whole:
                trial.set_user_attr("items", candidate.answers)
            self._constrain(trial, candidate)
            self._optuna.tell(trial, list(self._merits(candidate)))
        by = f" by {worker}" if worker else ""
        self._show(proposal, f"{proposal.number}/{trials}{by}", trials - len(self.proposals))
        if proposal.state != WAITING:
            self._log(proposal)

    def _merits(self, candidate: Candidate) -> tuple[float, ...]:
        """One for each objective; on few items the difference to the leader is known better than
        the score."""
        verdict, race = candidate.verdict, self.bench.race
        if not verdict.looks:
            return race.values_of(candidate.stages)
        leader = self._leader_values(verdict)
        if leader is None:
            return race.values_of(candidate.stages)
        return tuple(v + look.difference for v, look in zip(leader, verdict.looks, strict=True))

    def _leader_values(self, verdict: RaceVerdict) -> tuple[float, ...] | None:
        """Of the leader that a verdict was by, which may lead no more."""
        known: dict[str, Stages] = {c.plan_digest: c.stages for c in self.candidates}
        stages = self.bench.race.leaders.get(verdict.leader) or known.get(verdict.leader)
        stages = stages or self.baselines.sources.get(verdict.leader)
        return self.bench.race.values_of(stages) if stages else None

    def _constrain(self, trial: Any, candidate: Candidate | None) -> None:
        if candidate is not None:
            for task, slack in self.bench.race.slacks(candidate.stages).items():
                trial.set_constraint(task, slack)

    def _settle(self) -> None:
        """Ask those that wait on, the most promising first, until each has lost or is whole."""
        waiting = [p for p in self.proposals if p.state == WAITING]
        waiting.sort(key=lambda p: (-sum(self._merits_of(p)), p.number))
        left, running = list(waiting), dict[int, Proposal]()
        while left or running:
            while left and len(running) < self.crew.at_once and not self.is_spent:
                proposal = left.pop(0)
                assert proposal.candidate is not None, "what failed does not wait"
                running[proposal.number] = proposal
                self.crew.submit(self._job(proposal, max(proposal.candidate.stages)))
            if not running:
                break
            outcome = self.crew.next()
            proposal = running.pop(outcome.key)
            self._take(proposal, outcome)
            self._show(proposal, f"asking {proposal.number} on", 0)
        for proposal in waiting:
            self._log(proposal)

    def _merits_of(self, proposal: Proposal) -> tuple[float, ...]:
        return self._merits(proposal.candidate) if proposal.candidate else (-math.inf,)

    def _show(self, proposal: Proposal, count: str, left: int) -> None:
        """One line on stderr."""
        whole = self.whole
        best = f"; best so far {estimate(whole[0].scores)}" if whole else ""
        text = f"{label_of(proposal.values)}: {proposal.outcome(self.bench.race)}"
        self.bench.tools.progress.step(f"{count} {text}{best}{self._pace(left)}")

    def _pace(self, left: int) -> str:
        """Answers a second, and how long what is left takes if it goes on like this."""
        seconds = time.monotonic() - self._began
        answers = self.bench.cost.answers - self._before.answers
        if answers == 0:
            return ""
        text = f"; {answers / seconds:.0f} answers/s"
        if left:
            text += f", about {clock(left * seconds / len(self.proposals))} left"
        return text

    def _log(self, proposal: Proposal) -> None:
        """A light run in MLflow, and a point of the search's curve where it is whole."""
        candidate = proposal.candidate
        if candidate is not None and candidate.is_whole:
            scores = candidate.scores
            self.log.log_trial(scores.pooled, higher_is_better=scores.higher_is_better)
        self.log.log_candidate(
            proposal.label,
            number=proposal.number,
            values=proposal.values,
            state=proposal.state,
            answers=candidate.answers if candidate else 0,
            pooled=candidate.scores.pooled if candidate else math.nan,
            reason=proposal.reason,
        )


def _no_warnings() -> Any:
    """Optuna warns of what is experimental; that is for us to know."""
    import optuna

    return warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning)
