"""Several commands on one study: what is offered, claimed and taken over; and real ones."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.user_place import command, environment, mergeops

from mergeops.checkpoint import locked
from mergeops.progress import Progress
from mergeops.recipe import compose
from mergeops.search import joining
from mergeops.search.bench import Cost, Way
from mergeops.search.crew import Assignment
from mergeops.search.joining import Board, Together, leading

RECIPE = compose(["sources={a: /a, b: /b}", "method=linear"])
WORDS = (
    "search", "--config-dir", "conf", "recipe=three", "strategy=optuna", "search.trials=6",
    "search.sampler=random", "search.earlier=0", "search.racing=false", "--json",
)  # fmt: skip


class FakeBench:
    """Says whom it was asked to try out."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cost = folder, Cost()
        self.race = SimpleNamespace(
            shares=(1.0,), margin=0.0, alpha=0.5, objectives=(), limits=(), leaders={}
        )
        self.tools = SimpleNamespace(work_dir=folder)

    def try_out(self, label: str, recipe: Any, way: Way) -> str:
        return f"here: {label}"

    def kept(self, name: str) -> tuple[dict[float, Any], Cost]:
        return {1.0: f"scores of {name}"}, Cost()


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


@pytest.fixture
def together(board: Board, tmp_path: Path) -> Together:
    bench: Any = FakeBench(tmp_path)
    return Together(bench, board)


def offer(together: Together, *keys: int) -> None:
    for key in keys:
        together.submit(Assignment(key, f"c{key}", RECIPE, Way()))


SPAN = {"worker": "n2-7", "began": 1.0, "seconds": 2.0}
FOUND = {
    "plan_digest": "p",
    "verdict": ["whole", [], "", ""],
    "shares": [1.0],
    "spent": {},
    "span": SPAN,
}


def test_alone_a_command_tries_out_what_it_offers_in_order(together: Together) -> None:
    assert (together.workers, together.at_once) == (1, 1)
    offer(together, 1, 2)
    candidates: list[Any] = [together.next().candidate, together.next().candidate]
    assert candidates == ["here: c1", "here: c2"]


def test_what_another_command_found_is_taken_and_what_it_tries_out_is_left_to_it(
    together: Together, board: Board
) -> None:
    offer(together, 1, 2, 3)
    first, second, _ = board.offered()
    with board.helping(), board.claimed(first) as payload, board.claimed(second):
        assert payload is not None and payload["label"] == "c1"
        assert (together.workers, together.at_once) == (2, 3)
        assert together.next().key == 3, "the only one that nobody has"
        board.tell(first, FOUND)
        outcome = together.next()
        assert outcome.key == 1 and outcome.candidate is not None and outcome.seconds == 2.0
        assert outcome.candidate.stages == {1.0: "scores of p"}
        board.tell(second, {"reason": "it overflows", "log": "Traceback", "span": SPAN})
        failed = together.next()
        assert (failed.reason, failed.log, failed.worker) == ("it overflows", "Traceback", "n2-7")
    assert board.offered() == [] and together.workers == 1


def test_what_a_command_had_that_is_gone_is_tried_out_by_another(
    together: Together, board: Board
) -> None:
    offer(together, 1)
    [name] = board.offered()
    with board.claimed(name) as payload:
        assert payload is not None
        with board.claimed(name) as again:
            assert again is None, "another has it"
    # It ended without a word.
    candidate: Any = together.next().candidate
    assert candidate == "here: c1"


def test_a_new_leader_offers_nothing_of_the_old_one(
    together: Together, board: Board, tmp_path: Path
) -> None:
    offer(together, 1)
    [name] = board.offered()
    with board.claimed(name):
        bench: Any = FakeBench(tmp_path)
        new = Together(bench, Board(tmp_path))
        board.tell(name, FOUND)
        offer(new, 1)
        candidate: Any = new.next().candidate
        assert candidate == "here: c1"


def test_a_command_helps_until_it_can_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(tmp_path)
    tried = []

    def try_out(payload: dict[str, Any], desk: Any) -> dict[str, Any]:
        tried.append(payload["label"])
        lead.__exit__(None, None, None)
        return FOUND

    monkeypatch.setattr(joining, "try_out", try_out)
    lead = locked(tmp_path / "lock")
    lead.__enter__()
    name = board.offer({"label": "c1"})
    with leading(tmp_path, Progress(quiet=True)):
        told = board.found(name)
        assert tried == ["c1"] and told is not None
        assert told["plan_digest"] == "p" and told["span"]["seconds"] >= 0
        with pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
            pass


@pytest.mark.slow
def test_two_commands_try_out_one_study_and_the_first_may_be_killed(place: Path) -> None:
    def begin() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command(*WORDS), cwd=place, env=environment(place), stdout=pipe, stderr=pipe, text=True
        )

    def heard(process: subprocess.Popen[str], words: str) -> str:
        """What it says until it says these words."""
        told = []
        for line in process.stderr or ():
            told.append(line)
            if words in line:
                return "".join(told)
        raise AssertionError("".join(told))

    first = begin()
    heard(first, "1/6")
    # It waits, having the lead, until the second one is there.
    first.send_signal(signal.SIGSTOP)
    second = begin()
    heard(second, "another command leads this study")
    first.send_signal(signal.SIGCONT)
    heard(second, "tries out")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    output, rest = second.communicate()
    assert second.returncode == 0, rest
    assert "this one goes on with the study" in rest
    found = json.loads(output)
    alone = json.loads(mergeops(place, *WORDS, "output.dir=elsewhere"))
    assert [row["parameters"] for row in found["trials"]] == [
        row["parameters"] for row in alone["trials"]
    ]
    assert [row["score"] for row in found["trials"]] == [row["score"] for row in alone["trials"]]
