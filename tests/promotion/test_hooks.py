"""Hooks: told after the fact, signed, tried again, and never in the promotion's way."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.receiver import Receiver
from support.tracking_case import Case

from mergeops.errors import ConfigError
from mergeops.promotion.champion import make_champion, rollback
from mergeops.promotion.changes import aliases
from mergeops.promotion.hooks import configured, deliver, deliveries
from mergeops.recipe.settings import HooksSpec

SECRET = "between us"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("MERGEOPS_WEBHOOK_SECRET", SECRET)
    made = Receiver()
    yield made
    made.stop()


def move(case: Case, version: int, spec: HooksSpec) -> None:
    make_champion(
        case.tracking,
        "skills",
        version,
        {"decision": "promote"},
        passed=True,
        user="ann",
        hooks=configured(spec),
    )


def tell(case: Case, spec: HooksSpec) -> tuple[list[str], list[float]]:
    """Failures, and the waits between tries."""
    waits: list[float] = []
    return deliver(case.tracking, "skills", spec, sleep=waits.append), waits


def test_a_webhook_gets_the_change_signed_with_the_version_before(
    registered: Case, receiver: Receiver
) -> None:
    spec = HooksSpec(webhook=receiver.url)
    move(registered, 1, spec)
    move(registered, 2, spec)
    assert tell(registered, spec) == ([], [])
    assert len(receiver.got) == 2
    headers, body = receiver.got[1]
    told = json.loads(body)
    assert (told["event"], told["version"], told["previous_version"]) == ("promote", 2, 1)
    assert (told["uri"], told["by"]) == ("models:/skills/2", "ann")
    signed = headers["X-Mergeops-Timestamp"].encode() + b"." + body
    digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["X-Mergeops-Signature"] == f"v1={digest}"
    assert headers["X-Mergeops-Delivery"] == told["id"]
    assert SECRET not in body.decode()


def test_what_was_told_is_not_told_again(registered: Case, receiver: Receiver) -> None:
    spec = HooksSpec(webhook=receiver.url)
    move(registered, 1, spec)
    tell(registered, spec)
    tell(registered, spec)
    assert len(receiver.got) == 1
    [done] = deliveries(registered.tracking, "skills")
    assert (done.pending, list(done.done), done.error) == ((), ["webhook"], None)


def test_a_failing_webhook_is_tried_again_with_doubled_waits(
    registered: Case, receiver: Receiver
) -> None:
    receiver.codes = [503, 500, 429, 204]
    spec = HooksSpec(webhook=receiver.url, backoff_s=0.5)
    move(registered, 1, spec)
    assert tell(registered, spec) == ([], [0.5, 1.0, 2.0])
    assert deliveries(registered.tracking, "skills")[0].attempts == 4


def test_a_hook_that_keeps_failing_is_recorded_and_left_to_the_next_command(
    registered: Case, receiver: Receiver
) -> None:
    receiver.codes = [500]
    spec = HooksSpec(webhook=receiver.url, attempts=2, backoff_s=0)
    move(registered, 1, spec)
    failures, _ = tell(registered, spec)
    assert failures == [
        "the webhook hook of version 1 failed: the webhook answered 500 Internal Server Error; "
        "the next command tries again"
    ]
    assert aliases(registered.tracking, "skills") == {"champion": 1}
    [waiting] = deliveries(registered.tracking, "skills")
    assert (waiting.pending, waiting.attempts) == (("webhook",), 2)
    receiver.codes = [200]
    assert tell(registered, spec)[0] == []
    assert deliveries(registered.tracking, "skills")[0].pending == ()


@pytest.mark.parametrize(("code", "name"), [(401, "Unauthorized"), (302, "Found")])
def test_what_the_receiver_refuses_is_not_repeated_at_once(
    registered: Case, receiver: Receiver, code: int, name: str
) -> None:
    receiver.codes = [code]
    spec = HooksSpec(webhook=receiver.url)
    move(registered, 1, spec)
    [failure], waits = tell(registered, spec)
    assert f"the webhook answered {code} {name}" in failure
    assert (len(receiver.got), waits) == (1, [])


def test_a_receiver_that_is_away_is_no_error(registered: Case, receiver: Receiver) -> None:
    spec = HooksSpec(webhook="http://127.0.0.1:9/hook", attempts=2)
    move(registered, 1, spec)
    [failure], waits = tell(registered, spec)
    assert "the webhook cannot be reached" in failure
    assert waits == [1.0]


def test_a_command_gets_the_change_on_standard_input(registered: Case, tmp_path: Path) -> None:
    code = (
        "import json, os, pathlib, sys; told = json.load(sys.stdin); told['env'] = "
        "os.environ['MERGEOPS_VERSION']; pathlib.Path(sys.argv[1]).write_text(json.dumps(told)); "
        "print('not for our output')"
    )
    spec = HooksSpec(command=(sys.executable, "-c", code, str(tmp_path / "told.json")))
    for version in (1, 2):
        move(registered, version, spec)
    rollback(registered.tracking, "skills", user="ben", hooks=configured(spec))
    assert tell(registered, spec) == ([], [])
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["event"], told["version"], told["previous_version"]) == ("rollback", 1, 2)
    assert (told["by"], told["env"]) == ("ben", "1")


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("import sys; sys.exit('no disk')", "ended with 1: no disk"),
        ("import time; time.sleep(60)", "no end after 0.3 s"),
    ],
)
def test_a_command_that_fails_is_recorded_with_its_last_word(
    registered: Case, code: str, failure: str
) -> None:
    spec = HooksSpec(command=(sys.executable, "-c", code), attempts=1, timeout_s=0.3)
    if "disk" in code:
        spec = HooksSpec(command=spec.command, attempts=1)
    move(registered, 1, spec)
    [found], _ = tell(registered, spec)
    assert failure in found
    assert aliases(registered.tracking, "skills") == {"champion": 1}


def test_a_command_that_does_not_exist_is_not_tried_again_at_once(registered: Case) -> None:
    spec = HooksSpec(command=("./no-such-hook",))
    move(registered, 1, spec)
    assert tell(registered, spec) == (
        [
            "the command hook of version 1 failed: ./no-such-hook: No such file or directory; "
            "the next command tries again"
        ],
        [],
    )


def test_a_hook_that_is_configured_elsewhere_waits(registered: Case, receiver: Receiver) -> None:
    move(registered, 1, HooksSpec(webhook=receiver.url))
    [failure], _ = tell(registered, HooksSpec())
    assert "it is not configured here" in failure
    assert deliveries(registered.tracking, "skills")[0].pending == ("webhook",)


def test_a_webhook_without_a_secret_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MERGEOPS_WEBHOOK_SECRET", raising=False)
    message = "promote.hooks.webhook needs a secret to sign with: set MERGEOPS_WEBHOOK_SECRET"
    with pytest.raises(ConfigError, match=message):
        configured(HooksSpec(webhook="https://example.org/hook"))
    assert configured(HooksSpec()) == ()


def test_an_address_that_is_no_url_is_a_failure_and_no_crash(
    registered: Case, receiver: Receiver
) -> None:
    spec = HooksSpec(webhook="http://127.0.0.1:9/a hook", attempts=1)
    move(registered, 1, spec)
    [failure], _ = tell(registered, spec)
    assert "the webhook cannot be reached: URL can't contain control characters" in failure


def test_a_reason_with_credentials_is_told_once_and_without_them(
    registered: Case, receiver: Receiver
) -> None:
    spec = HooksSpec(webhook=receiver.url)
    for version in (1, 2):
        move(registered, version, HooksSpec())
    reason = "see https://ann:hunter2@example.org/x"
    rollback(registered.tracking, "skills", user="ann", reason=reason, hooks=configured(spec))
    assert tell(registered, spec) == ([], [])
    assert tell(registered, spec) == ([], [])
    [(_, body)] = receiver.got
    assert json.loads(body)["reason"] == "see https://example.org/x"
    [done] = deliveries(registered.tracking, "skills")
    assert (done.pending, done.change.reason) == ((), "see https://example.org/x")


def test_a_proposal_is_no_promotion_yet_and_told_to_nobody(registered: Case) -> None:
    spec = HooksSpec(command=("true",))
    make_champion(
        registered.tracking,
        "skills",
        1,
        {},
        passed=True,
        user="ann",
        approval=True,
        hooks=configured(spec),
    )
    assert deliveries(registered.tracking, "skills") == []
