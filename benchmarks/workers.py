"""What workers cost: the driver's time for each unit, and how well units of a fixed cost scale.

    python -m benchmarks.workers --seconds 0.5

Units sleep, so that the processors of the machine do not matter; workers are started before the
clock is.
"""

from __future__ import annotations

import argparse
import time

from mergeops.executors import Executor, Unit, open_executor, results
from mergeops.recipe import ExecutorSpec

WORK = "mergeops.testing.executor_units:double"


def units(executor: Executor, count: int, seconds: float, name: str) -> float:
    """Seconds that so many units take."""
    began = time.perf_counter()
    work = [Unit.of(WORK, {"i": i, "seconds": seconds, "of": name}) for i in range(count)]
    for _ in results(executor, work):
        pass
    return time.perf_counter() - began


def main() -> None:
    """Print a row for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a unit")
    parser.add_argument("--each", type=int, default=8, help="units for each worker")
    parser.add_argument("--workers", default="1,2,4,8,16,32")
    chosen = parser.parse_args()
    print("| workers | units | seconds | efficiency | driver's processor time a unit |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for workers in map(int, chosen.workers.split(",")):
        with open_executor(ExecutorSpec(workers=workers, threads=1)) as executor:
            # Each worker has done a unit before the clock starts.
            units(executor, 2 * workers, 2.0, "first")
            count, before = workers * chosen.each, time.process_time()
            took = units(executor, count, chosen.seconds, "then")
            own = (time.process_time() - before) / count
        share = chosen.each * chosen.seconds / took
        print(
            f"| {workers} | {count} | {took:.2f} | {share:.1%} | {own * 1000:.2f} ms |", flush=True
        )


if __name__ == "__main__":
    main()
