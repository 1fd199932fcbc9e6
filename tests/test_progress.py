"""Progress: bytes, speed and time left on a terminal; nothing where nobody watches."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from mergeops.cli.console import console, echo, table
from mergeops.progress import Progress, Task

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


def test_nothing_is_said_of_bytes_before_it_is_known_of_how_many() -> None:
    program = SHOWN.replace("FIRST", "11").replace("as tick:", "as tick:\n    time.sleep(0.3)")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    subprocess.run(command, stderr=theirs, env=environment, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "merging" in shown and "?" not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def lines_of(capsys: pytest.CaptureFixture[str], mode: str = "auto") -> list[str]:
    """What stderr, which is no terminal here, gets in 50 ms of work with a line every 20 ms."""
    with Progress(mode, every_s=0.02).bar("merging a", is_bytes=True) as task:
        task(5 * 10**8, 2 * 10**9)
        task.rename("merging b")
        time.sleep(0.05)
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(capsys)
    assert 1 <= len(lines) <= 3
    assert lines[0] == "· merging b: 0.5 of 2.0 GB (25%), 0:00:00 so far, about 0:00:00 left"


def test_a_log_gets_a_line_where_nothing_moves(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("lines", every_s=0.01).bar("loading"):
        time.sleep(0.1)
    assert capsys.readouterr().err.startswith("· loading: 0:00:00 so far\n")


def test_the_time_left_is_the_time_that_the_rest_takes_at_the_pace_so_far() -> None:
    task = Task("scoring math", began=time.monotonic() - 90)
    task(30, 40)
    assert str(task) == "scoring math: 30 of 40 (75%), 0:01:30 so far, about 0:00:30 left"


def test_a_program_gets_json_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    first, *_, last = map(json.loads, lines_of(capsys, "json"))
    assert first.pop("seconds") <= last.pop("seconds") < 5
    assert first == {"task": "merging a", "done": 0, "total": None, "unit": "bytes"}
    assert last == {"task": "merging b", "done": 5 * 10**8, "total": 2 * 10**9, "unit": "bytes"}
    Progress("json").step("note")
    assert json.loads(capsys.readouterr().err) == {"step": "note"}


def two_at_work(progress: Progress) -> None:
    progress.at_work("node1/1", "a.safetensors", 3, 4)
    progress.at_work("node2/2", "b.safetensors")
    progress.at_work("node3/3", "c.safetensors")
    progress.at_rest("node3/3")


def test_all_workers_stand_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("lines", every_s=0.02)
    with progress.bar("writing out") as task:
        task(3, 8)
        two_at_work(progress)
        time.sleep(0.05)
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("· writing out: 3 of 8 (38%), 0:00:00 so far")
    assert line.endswith("; node1/1: a.safetensors (75%); node2/2: b.safetensors")


def test_a_program_is_told_of_all_workers(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("json")
    with progress.bar("writing out"):
        two_at_work(progress)
    first, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert "workers" not in first
    assert last["workers"] == [
        {"worker": "node1/1", "unit": "a.safetensors", "done": 3, "total": 4},
        {"worker": "node2/2", "unit": "b.safetensors", "done": 0, "total": 0},
    ]


def test_all_workers_are_drawn_below_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("bar")
    with progress.bar("writing out") as task:
        task(3, 8)
        two_at_work(progress)
        time.sleep(0.25)
        for worker in ("node1/1", "node2/2"):
            progress.at_rest(worker)
        task(8, 8)
        time.sleep(0.25)
    # What a worker does after the bar has gone is drawn nowhere.
    progress.at_work("node1/1", "late")
    lines = capsys.readouterr().err.splitlines()
    last = max(number for number, line in enumerate(lines) if "node2/2: b.safetensors" in line)
    assert "node1/1: a.safetensors" in lines[last - 1] and "3/4" in lines[last - 1]
    assert "writing out" in lines[last - 2] and "3/8" in lines[last - 2]
    after = "".join(lines[last + 1 :])
    assert "8/8" in after and "node" not in after


def test_a_program_is_told_of_work_that_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("json").bar("scoring") as tick:
        tick(3, 3)
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(each["done"], each["total"]) for each in told] == [(0, None), (3, 3)]


def test_none_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(capsys, "none") == []


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


def test_a_name_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[2J\x1b]0;title of\u202e \x9b1A"
    shown = "\\x1b[2J\\x1b]0;title of\\u202e \\x9b1A"
    echo(f"{name}\n\tnext", err=True)
    Progress("lines").step(name)
    console().print(table(("name",), [(name,)]))
    console().print(name, markup=False)
    said = capsys.readouterr()
    assert said.err == f"{shown}\n\tnext\n· {shown}\n"
    assert said.out.count(shown) == 2 and "\x1b" not in said.out
