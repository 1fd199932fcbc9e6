"""The lock that the server keeps: one holder, taken over only from the dead."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from mergeops.errors import TrackingError
from mergeops.store import leases as module
from mergeops.store.connection import Tracking
from mergeops.store.leases import CLAIM, HOLDER, lease

OLD_LOCK = "skills (mergeops lock)"


@pytest.fixture
def tracking(tracking: Tracking) -> Tracking:
    tracking.client.create_registered_model("skills")
    return tracking


def claims(tracking: Tracking) -> list[str]:
    tags = tracking.client.get_registered_model("skills").tags
    return [tag.removeprefix(CLAIM) for tag in tags if tag.startswith(CLAIM)]


def hold(tracking: Tracking) -> Any:
    return lease(tracking, "the champion of skills", "skills")


def held_by(tracking: Tracking, token: str = "t", **holder: Any) -> None:
    claim = json.dumps({"at": time.time(), **holder})
    tracking.client.set_registered_model_tag("skills", CLAIM + token, claim)


def held_by_old_version(tracking: Tracking, **holder: Any) -> None:
    tags = {HOLDER: json.dumps({"token": "t", **holder})}
    tracking.client.create_registered_model(OLD_LOCK, tags)


def gone_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_it_is_held_for_the_block_and_gone_after_it(tracking: Tracking) -> None:
    with hold(tracking) as check:
        assert len(claims(tracking)) == 1
        check()
    assert claims(tracking) == []


def test_no_registered_model_is_made_for_it_since_that_would_start_webhooks(
    tracking: Tracking,
) -> None:
    with hold(tracking):
        models = tracking.client.search_registered_models()
        assert [model.name for model in models] == ["skills"]


def test_a_second_writer_is_told_who_holds_it(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.2)
    message = (
        rf"the champion of skills is being worked on by another mergeops command \(process "
        rf"{os.getpid()} on .*\); wait"
    )
    with hold(tracking) as check:
        for _ in range(3):  # the names of claims are random, and decide who waits
            with pytest.raises(TrackingError, match=message), hold(tracking):
                pass
        check()
    assert claims(tracking) == []


def test_of_many_who_begin_at_once_never_two_hold_it_and_one_does(tracking: Tracking) -> None:
    inside, most, held = 0, 0, 0
    count, start = threading.Lock(), threading.Barrier(4)

    def work() -> None:
        nonlocal inside, most, held
        start.wait()
        try:
            with hold(tracking):
                with count:
                    inside, held = inside + 1, held + 1
                    most = max(most, inside)
                time.sleep(0.05)
                with count:
                    inside -= 1
        except TrackingError:
            pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert held >= 1
    assert claims(tracking) == []


def test_the_claim_of_a_dead_process_on_this_machine_is_taken_over(tracking: Tracking) -> None:
    held_by(tracking, host=module._host(), pid=gone_process())
    with hold(tracking) as check:
        check()
        assert len(claims(tracking)) == 1


@pytest.mark.parametrize("away_s", [-1, 1])
def test_the_claim_of_another_machine_is_respected_until_it_is_old(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch, away_s: int
) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.2)
    held_by(tracking, host="elsewhere#1", pid=gone_process())
    with pytest.raises(TrackingError, match="on elsewhere"), hold(tracking):
        pass
    # A clock that is far ahead holds nobody up either.
    at = time.time() + away_s * (module.LEASE_S + 5)
    held_by(tracking, host="elsewhere#1", pid=gone_process(), at=at)
    with hold(tracking):
        assert len(claims(tracking)) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"at": "now"}'])
def test_a_claim_that_no_mergeops_wrote_holds_nobody_up(tracking: Tracking, text: str) -> None:
    tracking.client.set_registered_model_tag("skills", f"{CLAIM}0", text)
    with hold(tracking) as check:
        check()


def test_who_lost_the_lock_notices_and_leaves_the_new_one(tracking: Tracking) -> None:
    with hold(tracking) as check:
        [own] = claims(tracking)
        tracking.client.delete_registered_model_tag("skills", CLAIM + own)
        held_by(tracking, host="elsewhere#1", pid=1)
        with pytest.raises(TrackingError, match="was taken over by another writer"):
            check()
    assert claims(tracking) == ["t"]


def test_an_error_in_the_block_frees_it(tracking: Tracking) -> None:
    with pytest.raises(RuntimeError), hold(tracking):
        raise RuntimeError
    assert claims(tracking) == []


def test_a_claim_that_was_written_though_the_answer_was_lost_is_held(tracking: Tracking) -> None:
    class Lossy:
        def __getattr__(self, name: str) -> Any:
            return getattr(tracking.client, name)

        def set_registered_model_tag(self, *words: Any) -> None:
            tracking.client.set_registered_model_tag(*words)
            tracking.client.set_registered_model_tag(*words)

    lossy: Any = Lossy()
    with hold(dataclasses.replace(tracking, client=lossy)) as check:
        check()
    assert claims(tracking) == []


def test_the_lock_of_an_older_mergeops_is_respected_while_its_process_lives(
    tracking: Tracking,
) -> None:
    held_by_old_version(tracking, host=module._host(), pid=os.getpid())
    with pytest.raises(TrackingError, match=rf"process {os.getpid()} on"), hold(tracking):
        pass
    assert claims(tracking) == []


def test_the_stale_lock_of_an_older_mergeops_is_removed(tracking: Tracking) -> None:
    held_by_old_version(tracking, host=module._host(), pid=gone_process())
    with hold(tracking) as check:
        check()
    models = tracking.client.search_registered_models()
    assert [model.name for model in models] == ["skills"]
