"""Processes of this machine."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from mergeops.testing import ExecutorContract


@pytest.mark.slow
class TestLocal(ExecutorContract):
    executor = "local"


DRIVER = """
import sys
from mergeops.executors import Started, Unit, open_executor
from mergeops.recipe import ExecutorSpec

with open_executor(ExecutorSpec(workers=1, threads=1)) as executor:
    executor.submit(Unit.of("mergeops.testing.executor_units:double", {"i": 1, "seconds": 60}))
    for event in executor.events():
        if isinstance(event, Started):
            [process] = executor._launcher._processes.values()
            print(process.pid, flush=True)
"""


@pytest.mark.slow
def test_workers_end_with_a_driver_that_is_killed() -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    worker = psutil.Process(int(driver.stdout.readline()))
    driver.kill()
    driver.wait()
    driver.stdout.close()
    worker.wait(20)
