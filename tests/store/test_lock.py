"""One process at a time, and a dead one holds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mergeops.errors import TrackingError
from mergeops.store import lock
from mergeops.store.lock import only_one


def test_a_second_holder_is_told_who_the_first_is() -> None:
    with (
        only_one("the test", "a"),
        pytest.raises(
            TrackingError, match=f"^the test is being worked on by process {os.getpid()}"
        ),
        only_one("the test", "a"),
    ):
        pass


def test_the_lock_is_free_after_the_block_and_after_an_error() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="x"), only_one("the test", "b"):
            raise ValueError("x")


def test_other_work_is_not_locked() -> None:
    with only_one("one", "c"), only_one("other", "d"):
        pass


def test_a_killed_process_holds_nothing() -> None:
    code = (
        "import os, signal\nfrom mergeops.store.lock import only_one\n"
        "with only_one('x', 'e'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with only_one("the test", "e"):
        pass


def test_a_lock_directory_of_somebody_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lock.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / f"mergeops-{os.getuid() + 1}").mkdir()
    monkeypatch.setattr(lock.os, "getuid", lambda real=os.getuid: real() + 1)
    with pytest.raises(TrackingError, match="belongs to another user; set TMPDIR"), only_one("x"):
        pass
