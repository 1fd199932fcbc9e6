"""Run as a program by the tests: commands of mergeops, each forked from one process that has
imported what they need, which alone takes seconds.

Each has its own process, directory, environment and output, as a command from a shell has.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODULES = (
    "accelerate",
    "hydra",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mlflow.store.tracking.sqlalchemy_store",
    "mpl_toolkits.mplot3d",
    "rich.progress",
    "scipy.stats",
    "torch._dynamo",
    "transformers.models.llama.modeling_llama",
    *(f"mergeops.cli.{command}" for command in ("compare", "gc", "promote", "run", "sync")),
)
"""What commands import, in part when they need it."""


class ForkedCommands:
    """Runs commands one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lock = threading.Lock()

    def run(
        self, place: Path, words: tuple[str, ...], environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """The command, run to its end in a directory."""
        assert self._process.stdin and self._process.stdout
        order = {"place": str(place), "words": words, "environment": dict(environment)}
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        assert answer, "the process that forks commands has ended"
        end = json.loads(answer)
        return subprocess.CompletedProcess(words, end["status"], end["out"], end["err"])

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@functools.cache
def forked_commands() -> ForkedCommands:
    """Those of this test process."""
    commands = ForkedCommands()
    atexit.register(commands.close)
    return commands


def _work(order: dict[str, Any], report: Path) -> None:
    code = 70
    try:
        os.chdir(order["place"])
        os.environ.clear()
        os.environ.update(order["environment"])
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(report / name, os.O_WRONLY | os.O_CREAT, 0o600), number)
        sys.argv = ["mergeops", *order["words"]]
        # As a Python that starts with it.
        sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        from mergeops.cli.main import main

        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Do what comes on stdin, an order a line."""
    for module in MODULES:
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    with open(os.devnull) as nothing:
        # A command waits for nobody's orders.
        orders = os.fdopen(os.dup(0))
        os.dup2(nothing.fileno(), 0)
    for line in orders:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder)
            child = os.fork()
            if child == 0:
                _work(json.loads(line), report)
            _, status = os.waitpid(child, 0)
            out, err = ((report / name).read_text(errors="replace") for name in ("out", "err"))
        end = {"status": os.waitstatus_to_exitcode(status), "out": out, "err": err}
        print(json.dumps(end), file=answers, flush=True)


if __name__ == "__main__":
    serve()
