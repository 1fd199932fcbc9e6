"""The page shows a leaderboard as it was read last, and never waits for long."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mergeops.errors import ConfigError, TrackingError
from mergeops.recipe import TrackingSpec
from mergeops.service import boards as the_boards
from mergeops.service import mlflow_view
from mergeops.service.boards import Boards, ShownBoard, read_apart
from mergeops.service.mlflow_view import Registry


class Reading:
    """Reads boards when it is let."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.read: list[str] = []
        self.gives: Any = "first"

    def __call__(self, experiment: str) -> Any:
        assert self.may.wait(10)
        self.read.append(experiment)
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


@pytest.fixture
def reading() -> Reading:
    return Reading()


def until_shown(boards: Boards, wanted: Any) -> ShownBoard:
    deadline = time.monotonic() + 10
    while (shown := boards.shown("finetunes")).compared != wanted:
        assert time.monotonic() < deadline, shown
        time.sleep(0.01)
    return shown


def test_a_board_that_takes_long_is_shown_once_it_is_read(reading: Reading) -> None:
    boards = Boards(reading)
    assert boards.shown("finetunes") == ShownBoard(is_read=True)
    assert boards.shown("finetunes").is_read
    reading.may.set()
    assert not until_shown(boards, "first").is_read
    assert reading.read == ["finetunes"]


def test_a_small_board_is_there_at_once(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    reading.may.set()
    # However slow this machine is.
    monkeypatch.setattr(the_boards, "PATIENCE_S", 10.0)
    assert Boards(reading).shown("finetunes").compared == "first"


def test_an_old_board_is_shown_while_it_is_read_again(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards = Boards(reading)
    reading.may.set()
    until_shown(boards, "first")
    monkeypatch.setattr(the_boards, "FRESH_S", 0.0)
    reading.may.clear()
    reading.gives = "second"
    shown = boards.shown("finetunes")
    assert (shown.compared, shown.is_read) == ("first", True)
    reading.may.set()
    until_shown(boards, "second")


def test_why_there_is_none_is_shown(reading: Reading) -> None:
    boards = Boards(reading)
    reading.gives = TrackingError("there is no experiment 'finetunes'")
    reading.may.set()
    shown = until_shown(boards, None)
    while shown.is_read:
        shown = boards.shown("finetunes")
    assert shown.problem == "there is no experiment 'finetunes'"


def test_not_any_number_of_boards_is_read(reading: Reading) -> None:
    boards = Boards(reading)
    for i in range(the_boards.MOST):
        assert boards.shown(f"experiment {i}").is_read
    assert boards.shown("one more").problem.startswith("many leaderboards are being read")
    reading.may.set()


@pytest.mark.slow
def test_a_process_of_its_own_says_why_it_cannot_read(
    template_database: Path, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(template_database.read_bytes())
    spec = TrackingSpec(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrackingError, match="there is no experiment 'none'"):
        read_apart(spec, "none")


def test_what_a_first_view_needs_is_there_before_it(
    template_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.db").write_bytes(template_database.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    registry = Registry()
    registry.prepare()
    monkeypatch.setattr(mlflow_view, "compose", None)
    assert registry.settings().tracking.experiment and registry.connection()
    # What is wrong with the operator's config, a view says.
    wrong = Registry(tmp_path / "nowhere")
    monkeypatch.undo()
    wrong.prepare()
    with pytest.raises(ConfigError, match="nowhere"):
        wrong.settings()
