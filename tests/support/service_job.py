"""What a job of the tests does: once done, it stays done. Imports little, for it starts often.

python service_job.py FOLDER NAME SECONDS
"""

from __future__ import annotations

import fcntl
import json
import sys
import time
from pathlib import Path


def do(folder: Path, name: str, seconds: float) -> None:
    """Work in steps that are kept, and finish once; two at once leave a mark."""
    with open(folder / f"{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            (folder / f"{name}.doubled").touch()
            return
        for step in range(4):
            print(json.dumps({"task": name, "done": step, "total": 4}), file=sys.stderr, flush=True)
            if not (folder / f"{name}.{step}").exists():
                time.sleep(seconds / 4)
                (folder / f"{name}.{step}").touch()
        print(f"{name} is done", file=sys.stderr, flush=True)
        done = folder / f"{name}.done"
        if not done.exists():
            done.touch()
            with open(folder / "finished", "a") as log:
                log.write(f"{name}\n")
    print(json.dumps({"name": name}))


if __name__ == "__main__":
    do(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
