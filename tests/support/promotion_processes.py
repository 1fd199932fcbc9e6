"""Run as a program by the tests: many promoters at once, and promoters that die at a chosen write.

Each is a process of its own, forked before any connection is made, since starting Python and MLflow
anew for each would take minutes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from mergeops.errors import MergeopsError
from mergeops.promotion.champion import make_champion
from mergeops.recipe.settings import TrackingSpec
from mergeops.store.connection import connect

VERDICT = {"decision": "promote", "reasons": ["better than math: p = 0.01"]}


class Killing:
    """A client whose process is killed right after its n-th write."""

    def __init__(self, client: Any, n: int) -> None:
        self.client, self.left = client, n

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = member(*args, **kwargs)
            if name.startswith(("set_", "delete_", "log_", "create_")):
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def work(job: dict[str, Any], begin: float) -> str:
    """One promoter; gives what it would print as its error."""
    if job.get("own_machine"):
        # Lock files are below TMPDIR: with one of its own, this process sees no other's.
        tempfile.tempdir = tempfile.mkdtemp()
    spec = TrackingSpec(uri=job["uri"], experiment="merges", registered_model="skills")
    tracking = connect(spec)
    if job.get("killed_after"):
        killing: Any = Killing(tracking.client, job["killed_after"])
        tracking = dataclasses.replace(tracking, client=killing)
    time.sleep(max(0.0, begin - time.time()))
    try:
        make_champion(
            tracking,
            "skills",
            job["version"],
            VERDICT,
            passed=True,
            user="ann",
            expect_current=job.get("expect"),
        )
    except MergeopsError as error:
        return str(error)
    return ""


def fork(task: Callable[[], str]) -> tuple[int, int]:
    """Start a process; gives its id and where its answer can be read."""
    out, into = os.pipe()
    pid = os.fork()
    if pid:
        os.close(into)
        return pid, out
    answer = task()
    os.write(into, (answer or "done").encode())
    os._exit(0)


def main() -> None:
    """Jobs come as JSON on standard input; their answers go out, "killed" for the dead."""
    request = json.load(sys.stdin)
    import mlflow  # noqa: F401 - before the fork, and no connection with it

    begin = time.time() + request.get("wait_s", 0)
    started = []
    answers = []
    for job in request["jobs"]:
        started.append(fork(lambda job=job: work(job, begin)))  # type: ignore[misc]
        if not request.get("at_once"):
            answers.append(finish(*started.pop()))
    answers += [finish(*one) for one in started]
    print(json.dumps(answers))


def finish(pid: int, out: int) -> str:
    """Wait for a process and give its answer."""
    with os.fdopen(out) as file:
        answer = file.read()
    _, status = os.waitpid(pid, 0)
    return "killed" if os.WIFSIGNALED(status) else answer


if __name__ == "__main__":
    main()
