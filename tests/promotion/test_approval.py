"""Approval: one user proposes, another completes or rejects."""

from __future__ import annotations

from typing import Any

import pytest
from support.tracking_case import Case

from mergeops.errors import GateRefusedError, TrackingError
from mergeops.promotion import champion
from mergeops.promotion.approval import approve, reject
from mergeops.promotion.audit import Change, audit
from mergeops.promotion.champion import make_champion, rollback
from mergeops.promotion.changes import APPROVAL, aliases, proposal

VERDICT = {"decision": "promote", "reasons": []}


def propose(case: Case, version: int, *, user: str = "ann", **changes: Any) -> Change:
    wanted: dict[str, Any] = {"passed": True, "approval": True, **changes}
    return make_champion(case.tracking, "skills", version, VERDICT, user=user, **wanted)


def status(case: Case, version: int) -> str | None:
    found = case.tracking.client.get_model_version("skills", str(version))
    return found.tags.get(APPROVAL)


def kinds(case: Case) -> list[str]:
    return [change.kind for change in audit(case.tracking, "skills")]


def test_a_proposal_moves_only_the_challenger(registered: Case) -> None:
    change = propose(registered, 2)
    assert change.kind == "proposed"
    assert aliases(registered.tracking, "skills") == {"challenger": 2}
    assert status(registered, 2) == "pending"
    assert proposal(registered.tracking, "skills") == change


def test_another_user_completes_it(registered: Case) -> None:
    make_champion(registered.tracking, "skills", 1, VERDICT, passed=True, user="ann")
    proposed = propose(registered, 2)
    change = approve(registered.tracking, "skills", user="ben", expect_current=1)
    assert (change.kind, change.by, change.proposed_by) == ("promote", "ben", "ann")
    assert change.evidence_sha256 == proposed.evidence_sha256
    assert aliases(registered.tracking, "skills") == {"champion": 2, "previous": 1}
    assert status(registered, 2) == "approved"
    assert proposal(registered.tracking, "skills") is None
    assert kinds(registered) == ["promote", "proposed", "promote"]


def test_the_proposer_cannot_approve(registered: Case) -> None:
    propose(registered, 2)
    message = "version 2 of skills was proposed by ann; another user has to approve it"
    with pytest.raises(GateRefusedError, match=message):
        approve(registered.tracking, "skills", user="ann")
    assert aliases(registered.tracking, "skills") == {"challenger": 2}


def test_a_rejected_proposal_leaves_the_champion_and_says_why(registered: Case) -> None:
    propose(registered, 2)
    change = reject(registered.tracking, "skills", user="ben", reason="too slow")
    assert (change.kind, change.by, change.reason) == ("rejected", "ben", "too slow")
    assert aliases(registered.tracking, "skills") == {}
    assert status(registered, 2) == "rejected"
    done = f"waits for approval: version 2 was rejected by ben at {change.at}; `mergeops promote "
    with pytest.raises(TrackingError, match=done):
        approve(registered.tracking, "skills", user="ben")
    again = reject(registered.tracking, "skills", user="ben", reason="too slow")
    assert (again, again.was_made) == (change, True)
    assert kinds(registered) == ["proposed", "rejected"]


def test_a_second_approval_says_that_the_first_was_done(registered: Case) -> None:
    with pytest.raises(TrackingError, match="no proposal that waits for approval; `mergeops prom"):
        approve(registered.tracking, "skills", user="ben")
    propose(registered, 2)
    change = approve(registered.tracking, "skills", user="ben")
    for options in ({}, {"version": 2}, {"expect_current": 0}, {"expect_current": 2}):
        again = approve(registered.tracking, "skills", user="ben", **options)
        assert (again, again.was_made) == (change, True)
    assert kinds(registered) == ["proposed", "promote"]
    done = f"waits for approval: version 2 was approved by ben at {change.at}; `mergeops promote "
    with pytest.raises(TrackingError, match=done):
        approve(registered.tracking, "skills", user="ben", version=3)
    with pytest.raises(TrackingError, match=done):
        reject(registered.tracking, "skills", user="ben", reason="too late")


def test_an_approval_that_was_overtaken_since_is_not_said_to_be_done(registered: Case) -> None:
    propose(registered, 2)
    approve(registered.tracking, "skills", user="ben")
    make_champion(registered.tracking, "skills", 3, VERDICT, passed=True, user="ann")
    with pytest.raises(TrackingError, match="no proposal that waits"):
        approve(registered.tracking, "skills", user="ben")


def test_a_new_proposal_of_the_same_version_is_decided_anew(registered: Case) -> None:
    propose(registered, 2)
    reject(registered.tracking, "skills", user="ben", reason="too slow")
    propose(registered, 2)
    change = reject(registered.tracking, "skills", user="ben", reason="still too slow")
    assert (change.reason, change.was_made) == ("still too slow", False)
    assert kinds(registered) == ["proposed", "rejected"] * 2


def test_a_forced_proposal_stays_marked_when_it_is_approved(registered: Case) -> None:
    propose(registered, 2, passed=False, force=True, reason="demo on Monday")
    change = approve(registered.tracking, "skills", user="ben")
    assert (change.forced, change.reason) == (True, "demo on Monday")


def test_evidence_against_an_older_champion_is_not_approved(registered: Case) -> None:
    propose(registered, 2)
    make_champion(registered.tracking, "skills", 1, VERDICT, passed=True, user="ann")
    message = "champion is version 1, and was no version when version 2 was judged; promote it"
    with pytest.raises(TrackingError, match=message):
        approve(registered.tracking, "skills", user="ben")
    assert aliases(registered.tracking, "skills")["champion"] == 1


def test_one_proposal_waits_at_a_time(registered: Case) -> None:
    first = propose(registered, 2)
    assert propose(registered, 2) == first
    message = "version 2 of skills, proposed by ann, waits for approval; `mergeops approve skills`"
    with pytest.raises(TrackingError, match=message):
        propose(registered, 3)
    with pytest.raises(TrackingError, match="version 2 of skills waits for approval, not version"):
        approve(registered.tracking, "skills", user="ben", version=3)


def test_a_proposal_that_is_out_of_date_gives_way_to_a_new_one(registered: Case) -> None:
    propose(registered, 2)
    make_champion(registered.tracking, "skills", 1, VERDICT, passed=True, user="ann")
    propose(registered, 3)
    assert (status(registered, 2), status(registered, 3)) == ("superseded", "pending")
    approve(registered.tracking, "skills", user="ben")
    assert aliases(registered.tracking, "skills") == {"champion": 3, "previous": 1}


def test_a_proposal_whose_version_was_deleted_can_be_closed(registered: Case) -> None:
    propose(registered, 2)
    registered.tracking.client.delete_model_version("skills", "2")
    with pytest.raises(TrackingError, match="skills has no version 2; its versions: 1, 3"):
        approve(registered.tracking, "skills", user="ben")
    reject(registered.tracking, "skills", user="ben", reason="it is gone")
    assert proposal(registered.tracking, "skills") is None
    propose(registered, 3)
    assert aliases(registered.tracking, "skills") == {"challenger": 3}


def test_a_proposal_that_is_out_of_date_and_deleted_gives_way_too(registered: Case) -> None:
    propose(registered, 2)
    make_champion(registered.tracking, "skills", 1, VERDICT, passed=True, user="ann")
    registered.tracking.client.delete_model_version("skills", "2")
    propose(registered, 3)
    assert aliases(registered.tracking, "skills") == {"champion": 1, "challenger": 3}


def test_rollback_needs_no_approval_and_takes_an_expected_champion(registered: Case) -> None:
    for version in (1, 2):
        make_champion(registered.tracking, "skills", version, VERDICT, passed=True, user="ann")
    with pytest.raises(TrackingError, match="champion is version 2, not version 1 as expected"):
        rollback(registered.tracking, "skills", user="ann", expect_current=1)
    change = rollback(registered.tracking, "skills", user="ann", expect_current=2)
    assert change.to == 1


def test_a_clock_that_goes_back_changes_no_order_of_the_audit(
    registered: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = registered.tracking
    for version in (1, 2):
        make_champion(tracking, "skills", version, VERDICT, passed=True, user="ann")
    monkeypatch.setattr(champion, "now", lambda: "2020-01-01T00:00:00.000000Z")
    back = rollback(tracking, "skills", user="ann")
    assert [change.to for change in audit(tracking, "skills")] == [1, 2, 1]
    # The same again finds it done, and does not undo it.
    assert rollback(tracking, "skills", user="ann") == back
    assert aliases(tracking, "skills")["champion"] == 1


def test_a_proposal_that_its_proposer_promotes_without_approval_is_not_called_approved(
    registered: Case,
) -> None:
    propose(registered, 2)
    make_champion(registered.tracking, "skills", 2, VERDICT, passed=True, user="ann")
    assert status(registered, 2) == "superseded"
    assert proposal(registered.tracking, "skills") is None
