"""What a round decides: models are numbers here, MLflow is a list."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest

from mergeops.errors import AwayError, MergeError
from mergeops.progress import Progress
from mergeops.recipe import Recipe
from mergeops.watching import EndedRun, Round, WatchSpec, WatchState, run_round
from mergeops.watching import round as the_round
from mergeops.watching.state import WAITING, Best, SeenRun
from mergeops.watching.trying import Contender

RECIPE = {"method": "linear", "sources": {}, "tracking": {"registered_model": "skills"}}


class World:
    """Runs that end, what each is worth in a merge, and what was promoted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worth: dict[str, float] = {}
        """Run -> what it adds to a merge."""
        self.broken: set[str] = set()
        self.away_at: str | None = None
        self.ended: list[EndedRun] = []
        self.made: list[tuple[str, ...]] = []
        self.around = 0.0
        """What a search around a merge gains."""
        self.searches: list[str] = []
        self.spent = SimpleNamespace(written=0)
        self.asked: list[str] = []
        self.decision = "proposed"
        self.waiting: int | None = None
        self.state = WatchState()
        self.number = 0
        self.saves = 0
        self.dies_at: int | None = None
        patched = {
            "compose": lambda words, config_dir: Recipe.from_dict(RECIPE),
            "connect": lambda spec: SimpleNamespace(uri="sqlite:///x"),
            "only_one": lambda *words, wait: contextlib.nullcontext(),
            "Tools": lambda *given, **named: self._tools(),
            "newly_ended": self._newly_ended,
            "adopt_ended": self._adopt,
            "WatchBench": lambda recipe, tools: self,
            "gain_over": lambda a, b, confidence: (a.merit - b.merit, a.merit - b.merit - 0.02),
        }
        for name, value in patched.items():
            monkeypatch.setattr(the_round, name, value)
        promotion = SimpleNamespace(promote=self._promote, read_history=self._history)
        monkeypatch.setattr(the_round, "promotion", promotion)
        monkeypatch.setattr("mergeops.watching.due.promotion", promotion)

    def ends(self, **worth: float) -> None:
        for name, value in worth.items():
            self.worth[name] = value
            self.ended.append(EndedRun(name, name, "finetunes", "FINISHED", len(self.ended)))

    def round(self, *, again: bool = False, **spec: Any) -> Round:
        self.number += not again
        made = WatchSpec.from_dict({"name": "nightly", "experiments": ["finetunes"], **spec})

        def save(state: WatchState) -> None:
            self.state = WatchState.from_dict(json.loads(json.dumps(state.to_dict())))
            self.saves += 1
            if self.saves == self.dies_at:
                raise KeyboardInterrupt

        quiet = Progress(quiet=True)
        return run_round(made, self.state, self.number, save=save, progress=quiet)

    def outcomes(self) -> dict[str, str]:
        return {run.name: run.outcome for run in self.state.runs.values()}

    # What stands for WatchBench.

    def sha256(self, candidate: SeenRun) -> str:
        return candidate.name.removesuffix("_twin")

    def single(self, candidate: SeenRun, champion: int | None) -> Contender:
        if candidate.name in self.broken:
            raise MergeError(f"{candidate.name} has another architecture")
        best = Best({candidate.name: candidate.uri}, None, champion)
        return Contender(best, self._scores((candidate.name,)))

    def champion(self) -> None:
        return None

    def merged(self, best: Best) -> Contender:
        names = tuple(best.sources)
        if self.away_at in names:
            raise AwayError("cannot reach the MLflow server")
        if names not in self.made:
            self.made.append(names)
            self.spent.written += 10**9
        version = self.made.index(names) + 1
        best = dataclasses.replace(
            best, registered=f"skills/{version}", plan_digest="+".join(names)
        )
        parents = {name: self._scores((name,)) for name in names}
        trial: Any = SimpleNamespace(parents=parents)
        return Contender(best, self._scores(names, best.recipe.get("gain", 0.0)), trial)

    def searched(self, standing: Contender, candidates: int, minutes: float) -> Contender:
        assert (candidates, minutes) == (8, 120)
        self.searches.append(standing.best.registered)
        if not self.around:
            return standing
        sources = {name: {"uri": uri} for name, uri in standing.best.sources.items()}
        recipe = {"method": {"name": "linear"}, "sources": sources, "gain": self.around}
        best = dataclasses.replace(
            standing.best,
            registered=f"{standing.best.registered}1",
            plan_digest=f"around {standing.best.plan_digest}",
            recipe=recipe,
        )
        return Contender(best, self._scores(tuple(best.sources), self.around), standing.trial)

    def _tools(self) -> Any:
        self.spent.written = 0
        return SimpleNamespace(spent=self.spent)

    def _scores(self, names: tuple[str, ...], more: float = 0.0) -> Any:
        merit = 0.5 + sum(self.worth[name] for name in names) + more
        return SimpleNamespace(merit=merit, pooled=merit)

    # What stands for MLflow.

    def _newly_ended(self, tracking: Any, experiment: str, cursor: int, seen: Any, **more: Any):
        return [run for run in self.ended if run.run_id not in seen], len(self.ended)

    def _adopt(
        self, tracking: Any, experiment: str, ended: list[EndedRun], number: int, paths: Any
    ):
        return [
            SeenRun(r.run_id, r.name, experiment, r.status, WAITING, uri=f"runs:/{r.name}")
            for r in ended
        ]

    def _history(self, tracking: Any, name: str) -> Any:
        waits = SimpleNamespace(to=self.waiting) if self.waiting else None
        return SimpleNamespace(champion=None, waiting=waits)

    def _promote(self, recipe: Any, name: str, progress: Any, *, version: int, user: str) -> Any:
        assert recipe.promote.approval and user == "watch nightly"
        self.asked.append(f"{name}/{version}")
        is_proposed = self.decision == "proposed"
        self.waiting = version if is_proposed else self.waiting
        return SimpleNamespace(
            change=object() if is_proposed else None,
            verdict=SimpleNamespace(decision=self.decision),
            use=SimpleNamespace(level=0.025),
            expectations=(),
        )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_what_helps_is_kept_what_hurts_is_not_and_the_merge_is_proposed_once(world: World) -> None:
    world.ends(a=0.1, b=0.05, bad=-0.2)
    made = world.round()
    assert world.outcomes() == {"a": "kept", "b": "kept", "bad": "not better"}
    # Two merges, and what the search around the better one ends with.
    assert (made.new, made.usable, made.trials, made.proposed) == (3, 3, 3, "skills/1")
    assert world.state.runs["bad"].gain == pytest.approx(-0.2)
    for _ in range(3):
        assert world.round().note == "nothing new"
    assert world.asked == ["skills/1"]


def test_a_gain_that_dev_does_not_show_is_kept_for_more_to_be_added(world: World) -> None:
    world.ends(a=0.015, b=0.01)
    assert "kept, not proposed" in world.round().note
    # Nothing new: nothing is made or asked again.
    assert world.round().note == "nothing new"
    world.ends(c=0.012)
    assert world.round().proposed == "skills/2"
    assert world.asked == ["skills/2"] and world.made[-1] == ("a", "b", "c")


def test_candidates_wait_for_their_batch_and_for_the_budget(world: World) -> None:
    world.ends(a=0.1)
    assert world.round(batch=3).note.endswith("1 of a batch of 3 wait")
    world.ends(b=0.05, c=0.04)
    made = world.round(batch=3, budget={"trials": 1})
    assert (made.trials, world.outcomes()["c"]) == (1, "waiting")
    assert world.round(budget={"trials": 1}).trials == 1
    assert world.outcomes() == {"a": "kept", "b": "kept", "c": "kept"}


def test_the_confirm_part_is_opened_so_often_a_month_and_no_more(world: World) -> None:
    world.decision = "inconclusive"
    world.ends(a=0.1, b=0.05)
    assert world.round(budget={"confirm_uses": 1}).note.endswith("the gate says inconclusive")
    world.ends(c=0.1)
    note = world.round(budget={"confirm_uses": 1}).note
    assert note.endswith("skills/2 waits: the confirm part was opened 1 time(s) this month")
    assert world.asked == ["skills/1"]
    # Next month, or with a larger budget, what waited is put forward.
    assert world.round(budget={"confirm_uses": 2}).note.endswith("the gate says inconclusive")
    assert world.asked == ["skills/1", "skills/2"]


def test_one_proposal_waits_at_a_time(world: World) -> None:
    world.ends(a=0.1, b=0.05)
    world.round()
    world.ends(c=0.1)
    assert "version 1 is not decided on yet" in world.round().note
    world.waiting = None
    assert world.round().proposed == "skills/2"


def test_what_cannot_be_merged_is_told_by_name_and_the_others_go_on(world: World) -> None:
    world.broken = {"odd"}
    world.ends(a=0.1, odd=0.3, a_twin=0.1, b=0.05)
    assert world.round().proposed == "skills/1"
    assert world.outcomes() == {
        **{"a": "kept", "odd": "does not fit", "a_twin": "duplicate", "b": "kept"}
    }
    assert world.state.runs["odd"].note == "odd has another architecture"
    assert world.state.runs["a_twin"].note == "the very weights of a"


def test_a_round_that_was_cut_off_goes_on_where_it_was(world: World) -> None:
    world.ends(a=0.1, b=0.05, c=0.04)
    world.away_at = "c"
    with pytest.raises(AwayError):
        world.round()
    assert world.outcomes() == {"a": "kept", "b": "kept", "c": "waiting"}
    world.away_at = None
    made = world.round(again=True)
    assert (made.new, made.trials, made.proposed) == (0, 2, "skills/2")
    assert world.round(again=True).note.endswith("(done before)")
    assert world.asked == ["skills/2"]


def test_around_a_better_merge_a_small_search_is_made_once_and_its_best_is_proposed(
    world: World,
) -> None:
    world.around = 0.05
    world.ends(a=0.1, b=0.05)
    made = world.round()
    assert (made.proposed, made.trials, world.searches) == ("skills/11", 2, ["skills/1"])
    assert world.state.best is not None and world.state.best.is_searched
    assert world.round().note == "nothing new"
    # The next candidate is added to what the search found; what it makes is searched around again.
    world.waiting = None
    world.ends(c=0.04)
    assert world.round().proposed == "skills/21"
    assert world.searches == ["skills/1", "skills/2"]
    # One that is not kept leaves nothing new to search around.
    world.ends(bad=-0.2)
    world.round()
    assert world.searches == ["skills/1", "skills/2"]


def test_a_search_for_which_the_budget_had_nothing_left_is_made_in_the_next_round(
    world: World,
) -> None:
    world.ends(a=0.1, b=0.05)
    assert world.round(budget={"trials": 1}).proposed == "skills/1"
    assert world.searches == []
    made = world.round(budget={"trials": 1})
    assert (made.trials, world.searches) == (1, ["skills/1"])
    assert world.round(budget={"trials": 1}).note == "nothing new"


def test_a_watch_may_search_nothing(world: World) -> None:
    world.ends(a=0.1, b=0.05)
    assert world.round(budget={"search": 0}).proposed == "skills/1"
    assert world.searches == [] and world.round(budget={"search": 0}).note == "nothing new"


def test_a_round_writes_no_more_than_its_bytes(world: World) -> None:
    world.ends(a=0.1, b=0.05, c=0.04, d=0.03)
    assert world.round(budget={"bytes": "2GB"}).trials == 2
    assert world.outcomes()["d"] == "waiting"
    assert world.round(budget={"bytes": "2GB"}).trials == 2
    assert world.outcomes()["d"] == "kept"


def test_a_round_that_is_killed_after_any_step_loses_no_merge(world: World) -> None:
    world.ends(a=0.1, b=0.05)
    world.round()
    whole, steps = world.state, world.saves
    for killed_at in range(1, steps):
        world.state, world.number, world.waiting = WatchState(), 0, None
        world.saves, world.dies_at = 0, killed_at
        with pytest.raises(KeyboardInterrupt):
            world.round()
        world.dies_at = None
        world.round(again=True)
        assert world.state.best == whole.best, killed_at
        assert world.state.proposed or world.waiting, killed_at
