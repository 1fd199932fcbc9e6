"""Run as a program by the tests: commands of mergeops that are killed before a chosen step.

A step is a call that changes the disk (rename, link, unlink, mkdir, fsync, ...) or the database (a
statement that writes, and each commit). Each command is forked from one process that has imported
MLflow and torch, which alone takes seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLS = ("fsync", "rename", "replace", "link", "symlink", "unlink", "rmdir", "mkdir", "pwrite")
WRITING = ("INSERT", "UPDATE", "DELETE", "REPLACE")


@dataclass(frozen=True)
class CommandEnd:
    """How a command ended."""

    status: int
    """Exit code; -9 where it was killed."""
    steps: int
    """How many it made, where it lived."""
    out: str
    err: str


class MortalCommands:
    """Runs commands of mergeops, each in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(
        self, place: Path, *words: str, killed_at: int | None = None, **environment: str
    ) -> CommandEnd:
        """The command in a user's directory, killed before that step."""
        assert self._process.stdin and self._process.stdout
        order = {"place": str(place), "words": words, "killed_at": killed_at, "env": environment}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return CommandEnd(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


class _Steps:
    def __init__(self, killed_at: int | None) -> None:
        self.taken, self._killed_at = 0, killed_at

    def take(self) -> None:
        if self.taken == self._killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.taken += 1

    def watch(self) -> None:
        """Count from now on."""
        from sqlalchemy import Engine, event

        for name in CALLS:
            setattr(os, name, self._mortal(getattr(os, name)))
        event.listen(Engine, "before_cursor_execute", self._statement)
        event.listen(Engine, "commit", lambda connection: self.take())

    def _mortal(self, call: Any) -> Any:
        def step(*arguments: Any, **named: Any) -> Any:
            self.take()
            return call(*arguments, **named)

        return step

    def _statement(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.lstrip().upper().startswith(WRITING):
            self.take()


def _work(order: dict[str, Any], report: Path) -> None:
    from mergeops.cli.main import main

    os.chdir(order["place"])
    os.environ.update(order["env"])
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(report / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
    sys.argv = ["mergeops", *order["words"]]
    steps, code = _Steps(order["killed_at"]), 70
    steps.watch()
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        (report / "steps").write_text(str(steps.taken))
        os._exit(code)


def serve() -> None:
    """Do what comes on stdin, an order a line."""
    from mergeops.store.client import quiet

    quiet()
    import hydra  # noqa: F401
    import lm_eval.models.huggingface  # noqa: F401
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import mergeops.cli.gc
    import mergeops.cli.promote
    import mergeops.cli.run  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        report = Path(tempfile.mkdtemp())
        child = os.fork()
        if child == 0:
            _work(json.loads(line), report)
        _, status = os.waitpid(child, 0)
        said = {
            name: (report / name).read_text(errors="replace") if (report / name).exists() else ""
            for name in ("out", "err", "steps")
        }
        end = {"status": os.waitstatus_to_exitcode(status), "out": said["out"], "err": said["err"]}
        print(json.dumps({**end, "steps": int(said["steps"] or 0)}), file=answers, flush=True)


if __name__ == "__main__":
    serve()
