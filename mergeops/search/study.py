"""One study: what an Optuna sampler proposes is tried out, and told how good it was.

The study itself is never loaded from disk. The same seed proposes the same candidates, and the
scores of those that were tried before a crash are found, so going through it again is going on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError, EvaluationError, MergeError
from mergeops.scores import Scores, estimate
from mergeops.search.baselines import baselines
from mergeops.search.bench import Bench, Candidate
from mergeops.search.greedy_soup import choose, soup_recipe
from mergeops.search.space import Space, label_of
from mergeops.tracking import SearchRun

SAMPLERS = ("tpe", "gp", "cmaes", "random")


@dataclass(kw_only=True)
class Proposal:
    """What one trial of the sampler came to."""

    number: int
    """From 1."""
    values: Mapping[str, Any]
    candidate: Candidate | None
    """None where it could not be merged or scored."""
    reason: str = ""
    """Why it could not."""


@dataclass
class Study:
    """A study over one space.

    Args:
        space: what the sampler chooses from.
        bench: merges and scores.
        log: the run of the search in MLflow.
    """

    space: Space
    bench: Bench
    log: SearchRun
    baselines: dict[str, Candidate] = field(default_factory=dict)
    """By name; each was asked everything."""
    proposals: list[Proposal] = field(default_factory=list)
    _optuna: Any = None

    def run_baselines(self, parents: Mapping[str, Scores]) -> None:
        """Ask what needs no search; the greedy soup (Wortsman et al. 2022) is made of its steps.

        Raises:
            MergeopsError: one cannot be merged or scored, as all other candidates.
        """
        for baseline in baselines(self.space):
            self._add(
                baseline.name, self.bench.try_out(baseline.name, baseline.recipe, raced=False)
            )
        recipe = self.space.recipe

        def score_soup(names: tuple[str, ...]) -> float:
            label = f"soup of {len(names)}"
            soup = self.bench.try_out(label, soup_recipe(recipe, names), raced=False)
            soups[names] = soup
            return soup.scores.merit

        soups: dict[tuple[str, ...], Candidate] = {}
        best, _ = choose({name: parents[name].merit for name in recipe.sources}, score_soup)
        if len(best) > 1:
            self._add("greedy soup", soups[best])

    def run_trials(self, sampler: Any, trials: int) -> None:
        """Try out what the sampler proposes, one after the other.

        Raises:
            ConfigError, SourceError, TrackingError: what would stop every candidate.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna.create_study(direction="maximize", sampler=sampler)
        self._tell_baselines()
        for number in range(1, trials + 1):
            trial = self._optuna.ask()
            proposal = self._propose(number, trial)
            self.proposals.append(proposal)
            self._show(proposal, trials)

    def keep(self, file: Path) -> None:
        """Write the study as Optuna's journal, which optuna-dashboard opens, and log it."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        file.unlink(missing_ok=True)
        with warnings.catch_warnings(
            action="ignore", category=optuna.exceptions.ExperimentalWarning
        ):
            storage = JournalStorage(JournalFileBackend(str(file)))
        optuna.copy_study(
            from_study_name=self._optuna.study_name,
            from_storage=self._optuna._storage,
            to_storage=storage,
            to_study_name="mergeops",
        )
        self.log.log_text(file.read_text(encoding="utf-8"), "optuna.log")

    @property
    def whole(self) -> list[Candidate]:
        """Every candidate that was asked everything, once each, the best first."""
        tried = [*self.baselines.values(), *(p.candidate for p in self.proposals if p.candidate)]
        once = {c.plan_digest: c for c in reversed(tried) if c.is_whole}
        finite = [c for c in once.values() if math.isfinite(c.scores.merit)]
        return sorted(finite, key=lambda c: (-c.scores.merit, c.label))

    def _add(self, name: str, candidate: Candidate) -> None:
        self.baselines[name] = candidate
        scores = candidate.scores
        self.bench.tools.progress.step(f"{name}: {estimate(scores)} on dev")
        self.log.log_trial(scores.pooled, higher_is_better=scores.higher_is_better)

    def _tell_baselines(self) -> None:
        """Let the sampler learn from the baselines that its space has."""
        for baseline in baselines(self.space):
            merit = self.baselines[baseline.name].scores.merit
            if baseline.values is None or not math.isfinite(merit):
                continue
            self._optuna.enqueue_trial(baseline.values, user_attrs={"baseline": baseline.name})
            trial = self._optuna.ask()
            self.space.drawn(trial)
            self._optuna.tell(trial, merit)

    def _propose(self, number: int, trial: Any) -> Proposal:
        from optuna.trial import TrialState

        values = self.space.drawn(trial)
        try:
            candidate = self.bench.try_out(
                f"{number} {label_of(values)}", self.space.made(values), raced=True
            )
            merit = candidate.scores.merit
            if not math.isfinite(merit):
                raise EvaluationError("its score is not finite")
        except (ConfigError, MergeError, EvaluationError) as error:
            trial.set_user_attr("reason", str(error))
            self._optuna.tell(trial, state=TrialState.FAIL)
            return Proposal(number=number, values=values, candidate=None, reason=str(error))
        if candidate.look is not None:
            # On few items the difference to the leader is known better than the score.
            merit = self.bench.race.merit + candidate.look.difference
            trial.set_user_attr("dropped_after_items", candidate.answers)
        self._optuna.tell(trial, merit)
        return Proposal(number=number, values=values, candidate=candidate)

    def _show(self, proposal: Proposal, trials: int) -> None:
        """One line on stderr, and a light run in MLflow."""
        of, candidate = f"{proposal.number}/{trials}", proposal.candidate
        best = self.whole[0].scores
        if candidate is None:
            text, state = f"failed: {proposal.reason}", "failed"
        elif candidate.look is None:
            text, state = f"{estimate(candidate.scores)} on dev", "whole"
        else:
            text = f"dropped after {candidate.answers} items, {candidate.look} to the leader"
            state = "dropped"
        self.bench.tools.progress.step(
            f"{of} {label_of(proposal.values)}: {text}; best so far {estimate(best)}"
        )
        shown = candidate.scores if candidate is not None and candidate.is_whole else None
        if shown is not None:
            self.log.log_trial(shown.pooled, higher_is_better=shown.higher_is_better)
        self.log.log_candidate(
            f"{proposal.number} {label_of(proposal.values)}",
            number=proposal.number,
            values=proposal.values,
            state=state,
            answers=candidate.answers if candidate else 0,
            pooled=candidate.scores.pooled if candidate else math.nan,
            reason=proposal.reason,
        )


def open_sampler(name: str, space: Space, seed: int) -> Any:
    """Optuna's sampler of that name.

    Raises:
        ConfigError: it cannot choose from this space.
    """
    from optuna import samplers
    from optuna.exceptions import ExperimentalWarning

    if name == "cmaes" and any(axis.choices for axis in space.axes):
        words = ", ".join(axis.name for axis in space.axes if axis.choices)
        raise ConfigError(
            f"search.sampler=cmaes takes numbers only, and search.space chooses {words}; leave "
            "one method and ranges in it, or take search.sampler=tpe"
        )
    # Optuna warns of what is experimental; that is for us to know.
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        if name == "tpe":
            # Axes of one method are learned together, apart from those of another.
            return samplers.TPESampler(seed=seed, multivariate=True, group=True)
        if name == "gp":
            return samplers.GPSampler(seed=seed, warn_independent_sampling=False)
        if name == "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        return samplers.RandomSampler(seed=seed)
