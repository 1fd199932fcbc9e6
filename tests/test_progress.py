"""Progress: bytes, speed and time left on a terminal; nothing where nobody watches."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from mergeops.progress import Progress

SHOWN = """
import sys, time
from mergeops.progress import Progress
with Progress(quiet="quiet" in sys.argv).bar("merging", is_bytes=True) as tick:
    for done in range(FIRST, 11):
        tick(done * 10**8, 10**9)
        time.sleep(0.06)
"""


def on_a_terminal(*words: str, first: int = 0) -> str:
    """What a terminal on stderr gets, without its colours and cursor movements."""
    ours, theirs = pty.openpty()
    program = SHOWN.replace("FIRST", str(first))
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ) as running:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:
            # How a terminal says that its other end is closed.
            pass
        os.close(ours)
    assert running.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_a_terminal_gets_bytes_speed_and_time_left() -> None:
    shown = on_a_terminal()
    assert "merging" in shown
    assert re.search(r"0\.[1-9]/1\.0 GB", shown)
    assert re.search(r"\d+(\.\d)? (MB|GB)/s", shown)
    assert re.search(r"0:00:0\d", shown)


def test_what_an_earlier_try_did_is_no_speed_of_this_one() -> None:
    """0.1 GB every 0.06 s is at most 1.7 GB/s, though 0.8 GB are there at once."""
    speeds = [
        float(number) * (1000 if unit == "GB" else 1)
        for number, unit in re.findall(r"([\d.]+) (MB|GB)/s", on_a_terminal(first=8))
    ]
    assert speeds
    assert max(speeds) <= 1700


def test_quiet_is_quiet_on_a_terminal() -> None:
    assert on_a_terminal("quiet") == ""


def test_no_bar_is_drawn_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress().bar("merging", is_bytes=True) as tick:
        tick(1, 2)
        tick(2, 2)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")


def test_steps_are_said_anywhere_but_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    Progress().step("note: [odd] but possible")
    Progress(quiet=True).step("unheard")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "· note: [odd] but possible\n")


def test_names_between_colons_and_in_brackets_stay_what_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mergeops.cli.console import console, table

    Progress().step("source :dog: [bold]x[/]")
    console().print(table(("name",), [(":dog: [red]y",)]))
    with Progress(force_terminal=True).bar(":dog: [red]z"):
        pass
    out, err = capsys.readouterr()
    assert "source :dog: [bold]x[/]" in err
    assert ":dog: [red]z" in err
    assert ":dog: [red]y" in out
