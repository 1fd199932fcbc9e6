"""Merges in processes that die or run out of disk at a chosen point; real ones, ended by SIGKILL.

This file is both: ``Mortal`` starts it once as a program, which imports torch and forks a process
for each merge, so that tens of deaths take seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = ("fsync", "rename", "unlink", "posix_fallocate", "mkdir")


@dataclass(frozen=True)
class End:
    """How a merge ended."""

    killed: bool
    error: str
    """The message of its MergeopsError; empty without one."""
    exit_code: int
    computed: list[str]
    """The tensors that it computed, or began to."""
    began: int
    """Byte, over all shards, where the write began in which it was killed; -1 if elsewhere."""
    steps: int
    """Calls that ``step`` counts, of a merge that was to die in none of them."""
    seconds: float


class Mortal:
    """Runs merges of one plan in processes of their own."""

    def __init__(self, plan: Any, folder: Path) -> None:
        self._folder = folder
        self._run = 0
        (folder / "plan.json").write_text(json.dumps(plan.to_dict()))
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder / "plan.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def merge(self, out: Path, **fate: Any) -> End:
        """Merge into ``out``; it may die.

        Args:
            out: as of ``mergeops.engine.execute.merge``.
            fate: one of ``bytes`` (killed when that many are written, in the middle of a write),
                ``step`` (killed before that call of fsync, rename, unlink, ...), ``seconds``
                (killed from outside), ``limit`` (no file may be larger), ``fill`` (pair of a share
                of the bytes, and a file that then takes all of the disk).
        """
        self._run += 1
        report = self._folder / f"report-{self._run}"
        # It may be killed before it can say anything.
        report.touch()
        order = {"out": str(out), "report": str(report), "fate": fate}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        status, seconds = json.loads(self._process.stdout.readline())
        lines = [json.loads(line) for line in report.read_text().splitlines()]
        errors = [line["error"] for line in lines if "error" in line]
        return End(
            killed=status == -signal.SIGKILL,
            error=errors[0] if errors else "",
            exit_code=status,
            computed=[line["tensor"] for line in lines if "tensor" in line],
            began=next((line["began"] for line in lines if "began" in line), -1),
            steps=next((line["steps"] for line in lines if "steps" in line), 0),
            seconds=seconds,
        )

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _merge(plan: Any, order: dict[str, Any]) -> int:
    import resource

    from mergeops.engine import execute, stream
    from mergeops.errors import MergeopsError

    report = os.open(order["report"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def say(**line: Any) -> None:
        os.write(report, (json.dumps(line) + "\n").encode())

    fate, taken = order["fate"], 0
    results = stream.TensorStream.results

    def recorded(self: Any, tasks: Any) -> Any:
        def told() -> Iterator[Any]:
            for task in tasks:
                say(tensor=task.name)
                yield task

        return results(self, told())

    stream.TensorStream.results = recorded  # type: ignore[method-assign]
    if "bytes" in fate:
        written, pwrite = 0, os.pwrite

        def mortal_pwrite(file: int, data: Any, offset: int) -> int:
            nonlocal written
            left = fate["bytes"] - written
            if left < len(data):
                say(began=written)
                pwrite(file, data[:left], offset)
                _die()
            written += len(data)
            return pwrite(file, data, offset)

        os.pwrite = mortal_pwrite
    if "step" in fate:

        def mortal(call: Any) -> Any:
            def step(*arguments: Any, **named: Any) -> Any:
                nonlocal taken
                if taken == fate["step"]:
                    _die()
                taken += 1
                return call(*arguments, **named)

            return step

        for name in STEPS:
            setattr(os, name, mortal(getattr(os, name)))
    if "limit" in fate:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fate["limit"], fate["limit"]))
    share, ballast = fate.get("fill", (2, ""))

    def progress(done: int, total: int) -> None:
        if done >= share * total and not os.path.exists(ballast):
            with open(ballast, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 12))
                except OSError:
                    return

    try:
        tuning = execute.Tuning(chunk=16384, lanes=2)
        execute.merge(plan, Path(order["out"]), device="cpu", progress=progress, tuning=tuning)
    except MergeopsError as error:
        say(error=str(error))
        return error.exit_code
    say(error="", steps=taken)
    return 0


def main() -> None:
    """Do what comes on stdin, an order a line; answer with exit status and seconds."""
    import torch  # noqa: F401 - once, for all that is forked

    from mergeops.planning.plan import Plan

    plan = Plan.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    for line in sys.stdin:
        order = json.loads(line)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = _merge(plan, order)
            finally:
                os._exit(code)
        if "seconds" in order["fate"]:
            time.sleep(order["fate"]["seconds"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        answer = [os.waitstatus_to_exitcode(status), time.monotonic() - started]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
