"""Run as a program by the tests: processes that make MLflow's database, some until they are killed.

They are forked from one that has imported MLflow, which alone takes seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS = ("mkdir", "link", "unlink", "rmdir", "fsync")


def mortal(name: str, left: list[int]) -> Any:
    """A call of ``os`` before which the process is killed, when it is the one that counts."""
    call = getattr(os, name)

    def step(*arguments: Any, **named: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return call(*arguments, **named)

    return step


def work(path: str, fate: dict[str, int]) -> dict[str, Any]:
    """Connect to the database; it may not come back."""
    from sqlalchemy import Engine, event

    from mergeops.errors import MergeopsError
    from mergeops.recipe.settings import TrackingSpec
    from mergeops.store.connection import connect

    if "statement" in fate:
        left = [fate["statement"]]

        def count(*arguments: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(Engine, "before_cursor_execute", count)
    if "step" in fate:
        steps = [fate["step"]]
        for name in STEPS:
            setattr(os, name, mortal(name, steps))
    try:
        tracking = connect(TrackingSpec(uri=f"sqlite:///{path}", experiment="e"))
    except MergeopsError as error:
        return {"error": str(error)}
    return {"error": "", "experiment": tracking.experiment_id}


def begin(path: str, fate: dict[str, int]) -> tuple[int, Path]:
    """Start one; gives its process and where it reports."""
    descriptor, report = tempfile.mkstemp()
    os.close(descriptor)
    child = os.fork()
    if child:
        return child, Path(report)
    code = 70
    try:
        end = work(path, fate)
        with open(report, "w", encoding="utf-8") as file:
            file.write(json.dumps(end))
        code = 1 if end["error"] else 0
    finally:
        os._exit(code)


def main() -> None:
    """Do what comes on stdin, a line of paths and fates; answer with how each ended."""
    from mergeops.store.client import quiet

    quiet()
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - once, for all that is forked

    for line in sys.stdin:
        order = json.loads(line)
        begun = [begin(order["path"], fate) for fate in order["fates"]]
        ends = []
        for child, report in begun:
            _, status = os.waitpid(child, 0)
            said = json.loads(report.read_text() or '{"error": "it said nothing"}')
            report.unlink()
            ends.append({**said, "status": os.waitstatus_to_exitcode(status)})
        print(json.dumps(ends), flush=True)


if __name__ == "__main__":
    main()
