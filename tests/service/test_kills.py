"""kill -9 of server, worker and database while jobs run: nothing lost, nothing doubled."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from support.service_process import ServiceProcess
from support.service_work import words

pytestmark = [
    pytest.mark.integration,
    pytest.mark.sweep,
    # A dead worker's job is taken over after 20 s.
    pytest.mark.soak,
]


def test_no_kill_loses_or_doubles_a_job(short_folder: Path) -> None:
    service = ServiceProcess(short_folder / "kills", workers=2)
    draw = random.Random(0)
    try:
        client = service.start()
        names = [f"job{i}" for i in range(24)]
        for name in names:
            client.submit("adopt", words(service.marks, name, 0.4))
        for victim in ("worker", "database", "server", "worker"):
            time.sleep(draw.uniform(0.5, 1.5))
            if victim == "worker":
                service.kill_worker(0)
                service.start_worker(0)
            elif victim == "database":
                service.kill_database()
            else:
                service.kill_server()
                client = service.start()
        began = time.monotonic()
        while len(client.jobs(states=["succeeded"], limit=100)) < len(names):
            assert time.monotonic() - began < 60, client.jobs(limit=100)
            time.sleep(0.5)
        assert sorted(service.finished()) == sorted(names)
        assert service.doubled() == []
        assert client.jobs(states=["failed", "cancelled"]) == []
    finally:
        service.stop()
