"""Locks that end with their process, and files that are whole or as they were before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mergeops.checkpoint import durable
from mergeops.checkpoint.durable import locked, replace_with, sync_file

HOLDER = """
import sys, time
from pathlib import Path
from mergeops.checkpoint.durable import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_for_one_holder_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locked(file), pytest.raises(BlockingIOError), locked(file, wait=False):
        pass
    assert file.is_file()
    with locked(file, wait=False):
        pass


def test_a_shared_lock_keeps_out_only_those_that_do_not_share(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with (
        locked(file, shared=True),
        locked(file, shared=True, wait=False),
        pytest.raises(BlockingIOError),
        locked(file, wait=False),
    ):
        pass


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    file, order = tmp_path / "lock", []

    def wait() -> None:
        with locked(file):
            order.append("second")

    with locked(file):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.1)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]


def test_a_lock_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError), locked(file, wait=False):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with locked(file, wait=False):
        pass


def test_a_directory_is_locked_and_never_made(tmp_path: Path) -> None:
    with (
        locked(tmp_path, is_directory=True),
        pytest.raises(BlockingIOError),
        locked(tmp_path, wait=False, is_directory=True),
    ):
        pass
    with pytest.raises(FileNotFoundError), locked(tmp_path / "gone", is_directory=True):
        pass
    assert not (tmp_path / "gone").exists()


def test_the_holder_gets_the_file_of_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as descriptor:
        assert os.path.samestat(os.fstat(descriptor), os.stat(tmp_path / "lock"))


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path, sync: bool) -> None:
    file = tmp_path / "file.json"
    file.write_text("before")
    with replace_with(file, sync=sync) as temporary:
        temporary.write_text("after")
        assert file.read_text() == "before" and temporary.parent == tmp_path
    assert file.read_text() == "after"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_file_is_left_as_it_was_where_the_block_fails(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text("before")
    with pytest.raises(KeyboardInterrupt), replace_with(file) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_bytes_are_on_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (steps.append("sync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("name"), replace(*paths)))
    with replace_with(tmp_path / "file") as temporary:
        temporary.write_text("text")
    assert steps == ["sync", "name"]


def test_what_never_got_to_the_disk_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(file: int) -> None:
        raise OSError(5, "Input/output error")

    (tmp_path / "file").write_text("text")
    monkeypatch.setattr(durable.os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        sync_file(tmp_path / "file")
    assert not (tmp_path / "file").exists()
