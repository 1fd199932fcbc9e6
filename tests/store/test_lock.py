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


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(lock.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"mergeops-{os.getuid()}"


def test_a_lock_directory_that_is_a_link_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrackingError, match="is no directory; remove it, or"), only_one("x", "a"):
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_lock_directory_that_others_may_write_to_is_refused(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(TrackingError, match="others may write to .*; remove it"), only_one("x"):
        pass


def test_a_lock_that_is_a_link_makes_no_file_where_it_leads(place: Path, tmp_path: Path) -> None:
    with only_one("x", "a"):
        [made] = place.iterdir()
        assert made.read_text() == str(os.getpid())
    made.unlink()
    made.symlink_to(tmp_path / "victim")
    with (
        pytest.raises(TrackingError, match=r"cannot be taken: .*symbolic links; set TMPDIR"),
        only_one("x", "a"),
    ):
        pass
    assert not (tmp_path / "victim").exists()


def test_a_temporary_directory_that_is_gone_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lock.tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    with pytest.raises(TrackingError, match="no place for locks: .*set TMPDIR"), only_one("x"):
        pass
