"""The lock that the server keeps: one holder, taken over only from the dead."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from mergeops.errors import TrackingError
from mergeops.store import leases as module
from mergeops.store.connection import Tracking
from mergeops.store.leases import HOLDER, lease

LOCK = "skills (mergeops lock)"


def locks(tracking: Tracking) -> list[str]:
    return [model.name for model in tracking.client.search_registered_models()]


def hold(tracking: Tracking) -> Any:
    return lease(tracking, "the champion of skills", "skills")


def held_by(tracking: Tracking, **holder: Any) -> None:
    tags = {HOLDER: json.dumps({"token": "t", **holder})}
    tracking.client.create_registered_model(LOCK, tags)


def gone_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_it_is_held_for_the_block_and_gone_after_it(tracking: Tracking) -> None:
    with hold(tracking) as check:
        assert locks(tracking) == [LOCK]
        check()
    assert locks(tracking) == []


def test_a_second_writer_is_told_who_holds_it(tracking: Tracking) -> None:
    message = (
        rf"the champion of skills is being worked on by another mergeops command \(process "
        rf"{os.getpid()} on .*\); wait"
    )
    with hold(tracking), pytest.raises(TrackingError, match=message), hold(tracking):
        pass
    assert locks(tracking) == []


def test_the_lock_of_a_dead_process_on_this_machine_is_taken_over(tracking: Tracking) -> None:
    held_by(tracking, host=module._host(), pid=gone_process())
    with hold(tracking) as check:
        check()


def test_the_lock_of_another_machine_is_respected_until_it_is_old(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_by(tracking, host="elsewhere#1", pid=gone_process())
    with pytest.raises(TrackingError, match="on elsewhere"), hold(tracking):
        pass
    monkeypatch.setattr(module, "LEASE_S", -1)
    with hold(tracking):
        assert locks(tracking) == [LOCK]


def test_who_lost_the_lock_notices_and_leaves_the_new_one(tracking: Tracking) -> None:
    with hold(tracking) as check:
        tracking.client.delete_registered_model(LOCK)
        with pytest.raises(TrackingError, match="was taken over by another writer"):
            check()
        held_by(tracking, host="elsewhere#1", pid=1)
        with pytest.raises(TrackingError, match="was taken over by another writer"):
            check()
    assert locks(tracking) == [LOCK]


def test_an_error_in_the_block_frees_it(tracking: Tracking) -> None:
    with pytest.raises(RuntimeError), hold(tracking):
        raise RuntimeError
    assert locks(tracking) == []


def test_a_lock_that_was_made_though_the_answer_was_lost_is_held(tracking: Tracking) -> None:
    class Lossy:
        def __getattr__(self, name: str) -> Any:
            return getattr(tracking.client, name)

        def create_registered_model(self, *words: Any) -> Any:
            tracking.client.create_registered_model(*words)
            return tracking.client.create_registered_model(*words)

    lossy: Any = Lossy()
    with hold(dataclasses.replace(tracking, client=lossy)) as check:
        check()
    assert locks(tracking) == []
