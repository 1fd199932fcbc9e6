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
from collections.abc import Callable, Mapping
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


Watch = Callable[[dict[str, Any]], Callable[[], int]]
"""``watch(order)`` is called in a command's process before it begins; what it returns gives, at the
end, a number that is told."""


class ForkedCommands:
    """Runs commands one after the other.

    Args:
        program: the module that calls ``serve``.
    """

    def __init__(self, program: str = "support.forked_commands") -> None:
        here = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._lock = threading.Lock()

    def run(
        self, place: Path, words: tuple[str, ...], environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """The command, run to its end in a directory."""
        end = self.ask({"place": str(place), "words": words, "environment": dict(environment)})
        return subprocess.CompletedProcess(words, end["status"], end["out"], end["err"])

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """How a command ended: status, out, err, and the number that is told, 0 if it was killed.

        Args:
            order: place, words, environment, and what else ``watch`` reads.
        """
        assert self._process.stdin and self._process.stdout
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        assert answer, "the process that forks commands has ended"
        end: dict[str, Any] = json.loads(answer)
        return end

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


def _work(order: dict[str, Any], report: Path, watch: Watch | None) -> None:
    code, told = 70, None
    try:
        os.chdir(order["place"])
        os.environ.clear()
        os.environ.update(order["environment"])
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(report / name, os.O_WRONLY | os.O_CREAT, 0o600), number)
        sys.argv = ["mergeops", *order["words"]]
        # As of `python -m mergeops` in that directory.
        sys.path[0] = order["place"]
        sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        from mergeops.cli.main import main

        told = watch(order) if watch is not None else None
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
        if told is not None:
            (report / "told").write_text(str(told()))
        os._exit(code)


def serve(watch: Watch | None = None) -> None:
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
                _work(json.loads(line), report, watch)
            _, status = os.waitpid(child, 0)
            said = {
                name: (report / name).read_text(errors="replace")
                if (report / name).exists()
                else ""
                for name in ("out", "err", "told")
            }
        end = {"status": os.waitstatus_to_exitcode(status), **said, "told": int(said["told"] or 0)}
        print(json.dumps(end), file=answers, flush=True)


if __name__ == "__main__":
    serve()
