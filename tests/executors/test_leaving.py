"""Workers whose place is taken away: a drained node, a preempted job."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from mergeops.executors import Event, Executor, Failed, Finished, Lost, Started, Unit
from mergeops.executors.local_processes import LocalWorkers


class Elsewhere(LocalWorkers):
    """Processes whose nodes are drained, or that are preempted, as a test says."""

    drained: tuple[int, ...] = ()
    is_preempted = False

    def leaving(self) -> Collection[int]:
        return self.drained

    def was_taken(self, number: int) -> bool:
        return self.is_preempted


@pytest.fixture
def launcher() -> Elsewhere:
    return Elsewhere(workers=1, threads=1)


def unit(work: str, **payload: object) -> Unit:
    return Unit.of(f"mergeops.testing.executor_units:{work}", payload)


def course(executor: Executor, launcher: Elsewhere) -> Iterator[Event]:
    """What is told; the first worker's node is drained when it begins."""
    for event in executor.events():
        if isinstance(event, Started):
            launcher.drained = (1,)
        yield event


def test_a_worker_on_a_drained_node_ends_its_unit_and_another_takes_the_next(
    launcher: Elsewhere,
) -> None:
    with Executor(launcher) as executor:
        for i in range(2):
            executor.submit(unit("double", i=i, seconds=2))
        events = list(course(executor, launcher))
    assert not any(isinstance(event, Lost | Failed) for event in events)
    done = {event.result["twice"]: event.worker for event in events if isinstance(event, Finished)}
    assert done.keys() == {0, 2}
    assert done[0].startswith("worker 1 ") and done[2].startswith("worker 2 ")


def test_a_unit_whose_workers_are_preempted_is_not_given_up(
    launcher: Elsewhere, tmp_path: Path
) -> None:
    launcher.is_preempted = True
    with Executor(launcher) as executor:
        executor.submit(unit("die", mark=str(tmp_path / "mark")))
        lost = 0
        for event in executor.events():
            lost += isinstance(event, Lost)
            assert not isinstance(event, Failed)
            if lost == 4:
                break
    assert (tmp_path / "mark").read_text().startswith("xxxx")
