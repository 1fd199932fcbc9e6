"""The laws that every executor obeys, whoever wrote it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mergeops.errors import ConfigError, MergeError
from mergeops.executors import (
    Event,
    Executor,
    Failed,
    Finished,
    Lost,
    Needs,
    Started,
    Unit,
    UnitError,
    open_executor,
    results,
)
from mergeops.recipe import ExecutorSpec

MB = 10**6


class ExecutorContract:
    """Tests that hold an executor to what merges and searches rely on.

    A test file runs them all by

        class TestMine(ExecutorContract):
            executor = "mine"

    Workers have to run on this machine, or on one that shares pytest's temporary directory.
    """

    executor = ""
    """Its name."""
    parameters: Mapping[str, Any] = {}
    """What else ``executor.KEY=VALUE`` would say."""

    @pytest.fixture
    def spec(self) -> ExecutorSpec:
        """Two workers."""
        return ExecutorSpec(name=self.executor, workers=2, threads=1, parameters=self.parameters)

    @pytest.fixture
    def opened(self, spec: ExecutorSpec) -> Iterator[Executor]:
        """It, open."""
        with open_executor(spec) as opened:
            yield opened

    def test_every_unit_is_done_once_and_told_of(self, opened: Executor) -> None:
        units = [_unit("double", i=i) for i in range(12)]
        told: list[Event] = []
        ended = list(results(opened, units, tell=told.append))
        assert {e.unit.name: e.result["twice"] for e in ended} == {
            unit.name: 2 * i for i, unit in enumerate(units)
        }
        assert len(ended) == 12
        assert sum(isinstance(event, Started) for event in told) == 12
        assert opened.workers == 2

    def test_more_can_be_submitted_as_results_come_in(self, opened: Executor) -> None:
        opened.submit(_unit("double", i=0))
        found = []
        for event in opened.events():
            if isinstance(event, Finished):
                found.append(event.result["twice"])
                if len(found) < 4:
                    opened.submit(_unit("double", i=len(found)))
        assert found == [0, 2, 4, 6]

    def test_a_unit_of_the_same_name_is_not_done_again(self, opened: Executor) -> None:
        for _ in range(3):
            opened.submit(_unit("where"))
        assert [e.result["units"] for e in opened.events() if isinstance(e, Finished)] == [1]

    def test_workers_remember_from_unit_to_unit(self, opened: Executor) -> None:
        ended = list(results(opened, [_unit("where", i=i) for i in range(10)]))
        assert len({event.result["pid"] for event in ended}) <= 2
        assert max(event.result["units"] for event in ended) >= 5
        assert os.getpid() not in {event.result["pid"] for event in ended}

    def test_the_unit_of_a_killed_worker_is_done_by_another(
        self, opened: Executor, tmp_path: Path
    ) -> None:
        units = [_unit("die_once", mark=str(tmp_path / "mark"))]
        units += [_unit("double", i=i, seconds=0.1) for i in range(4)]
        told: list[Event] = []
        ended = list(results(opened, units, tell=told.append))
        assert {event.unit.name for event in ended} == {unit.name for unit in units}
        assert [event.unit for event in told if isinstance(event, Lost)] == units[:1]

    def test_a_unit_that_ends_every_worker_is_given_up(
        self, opened: Executor, tmp_path: Path
    ) -> None:
        units = [_unit("die", mark=str(tmp_path / "mark")), _unit("double", i=1)]
        for unit in units:
            opened.submit(unit)
        ended = [e for e in opened.events() if isinstance(e, Finished | Failed)]
        assert {event.unit.name for event in ended} == {unit.name for unit in units}
        [failed] = [event for event in ended if isinstance(event, Failed)]
        assert isinstance(failed.error, MergeError) and "ended 3 workers" in str(failed.error)
        assert (tmp_path / "mark").read_text() == "xxx"

    def test_an_error_of_a_unit_is_told_and_others_go_on(self, opened: Executor) -> None:
        units = [_unit("refuse", why="a"), _unit("break_down", why="b"), _unit("double", i=1)]
        for unit in units:
            opened.submit(unit)
        ended = {e.unit.name: e for e in opened.events() if isinstance(e, Finished | Failed)}
        ours, other, fine = (ended[unit.name] for unit in units)
        assert isinstance(ours, Failed) and isinstance(ours.error, MergeError)
        assert str(ours.error) == "a cannot be merged" and ours.error.at == "sources.a"
        assert isinstance(other, Failed) and isinstance(other.error, UnitError)
        assert str(other.error) == "ZeroDivisionError: b" and "in break_down" in other.log
        assert isinstance(fine, Finished)

    def test_a_cancelled_unit_is_left_and_its_worker_goes_on(self, opened: Executor) -> None:
        long, waiting, short = (
            _unit("double", i=1, seconds=60),
            _unit("double", i=2, seconds=60),
            _unit("double", i=3),
        )
        opened.submit(long)
        for event in opened.events():
            assert isinstance(event, Started)
            break
        opened.submit(waiting)
        opened.cancel(waiting.name)
        opened.cancel(long.name)
        assert [event.unit for event in results(opened, [short])] == [short]

    def test_memory_is_kept_to(self, spec: ExecutorSpec) -> None:
        little = ExecutorSpec(**{**vars(spec), "workers": 1, "memory": "200MB"})
        with (
            open_executor(little) as opened,
            pytest.raises(MergeError, match=r"more than executor.memory allows \(0\.20 GB\)"),
        ):
            list(results(opened, [_unit("hold_memory", nbytes=400 * MB, seconds=30)]))

    def test_what_a_worker_does_not_see_is_said_before_any_work(
        self, spec: ExecutorSpec, tmp_path: Path
    ) -> None:
        mark = tmp_path / "mark"
        folder = tmp_path / "sources"
        missing = str(folder / "weights")
        with (
            open_executor(spec, Needs(files={missing: 10}, shared=(str(tmp_path),))) as opened,
            pytest.raises(ConfigError, match=rf"worker \d on .* cannot read {folder}"),
        ):
            list(results(opened, [_unit("die_once", mark=str(mark))]))
        assert list(tmp_path.iterdir()) == []

    def test_closing_ends_what_is_under_way(self, spec: ExecutorSpec) -> None:
        with open_executor(spec) as opened:
            [first] = results(opened, [_unit("where")])
            opened.submit(_unit("double", i=1, seconds=60))
            next(opened.events())
        assert _ends(first.result["pid"])

    def test_an_unknown_key_is_refused(self, spec: ExecutorSpec) -> None:
        odd = ExecutorSpec(**{**vars(spec), "parameters": {**spec.parameters, "adress": "x"}})
        with pytest.raises(ConfigError, match=r"unknown key executor\.adress"):
            open_executor(odd)


def _ends(process: int) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def _unit(function: str, **payload: Any) -> Unit:
    return Unit.of(f"mergeops.testing.executor_units:{function}", payload, function)
