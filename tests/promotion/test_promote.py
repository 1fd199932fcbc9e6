"""Who is @champion: moved only on evidence, audited, undone, and never left half-done."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tracking_case import Case, make_scores, sha256

from mergeops.errors import ConfigError, GateRefusedError, TrackingError
from mergeops.promotion.approval import approve
from mergeops.promotion.audit import Change, audit, now
from mergeops.promotion.candidates import candidates
from mergeops.promotion.champion import find_champion, make_champion, rollback
from mergeops.promotion.changes import apply, begun, writing
from mergeops.store import own_tags
from mergeops.store.leases import CLAIM
from mergeops.store.lock import only_one
from mergeops.tracking import register_trial

VERDICT = {"decision": "promote", "reasons": ["better than math: p = 0.01"]}
REFUSAL = {"decision": "refuse", "reasons": ["not better than math: p = 0.4"]}


def move(case: Case, version: int, **changes: Any) -> Change:
    wanted: dict[str, Any] = {"passed": True, "user": "ann", **changes}
    verdict = wanted.pop("verdict", VERDICT)
    return make_champion(case.tracking, "skills", version, verdict, **wanted)


def aliases(case: Case) -> dict[str, int]:
    found = case.tracking.client.get_registered_model("skills").aliases
    return {name: int(version) for name, version in found.items()}


def statuses(case: Case) -> dict[int, str]:
    found = case.tracking.client.search_model_versions("name = 'skills'")
    return {int(v.version): v.tags["mergeops.status"] for v in found}


def kinds(case: Case) -> list[tuple[str, int | None, int]]:
    return [(entry.kind, entry.came_from, entry.to) for entry in audit(case.tracking, "skills")]


def test_the_first_promotion_makes_a_champion_without_a_previous_one(registered: Case) -> None:
    assert find_champion(registered.tracking, "skills") is None
    change = move(registered, 2)
    assert (change.came_from, change.to, change.by) == (None, 2, "ann")
    assert aliases(registered) == {"champion": 2}
    assert statuses(registered) == {1: "candidate", 2: "promoted", 3: "candidate"}


def test_the_next_one_keeps_the_old_champion_as_previous(registered: Case) -> None:
    move(registered, 1)
    move(registered, 3)
    assert aliases(registered) == {"champion": 3, "previous": 1}
    assert statuses(registered) == {1: "superseded", 2: "candidate", 3: "promoted"}
    assert kinds(registered) == [("promote", None, 1), ("promote", 1, 3)]


def test_the_evidence_is_kept_with_the_run_and_its_digest_in_the_audit(
    registered: Case, tmp_path: Path
) -> None:
    change = move(registered, 2)
    run_id = registered.tracking.client.get_model_version("skills", "2").run_id
    path = registered.tracking.client.download_artifacts(run_id, "gate.json", str(tmp_path))
    assert json.loads(Path(path).read_text()) == VERDICT
    assert change.evidence_sha256 == sha256(json.dumps(VERDICT, sort_keys=True))
    assert audit(registered.tracking, "skills") == [change]


def test_the_bytes_of_the_kept_verdict_have_the_digest_of_the_audit(
    registered: Case, tmp_path: Path
) -> None:
    told = {"decision": "promote", "checks": [{"reference": "s3://ann:key@bucket/x"}]}
    change = move(registered, 2, verdict=told)
    assert change.evidence_sha256 is not None
    client = registered.tracking.client
    run_id = client.get_model_version("skills", "2").run_id
    kept = f"gate/{change.evidence_sha256[:16]}.json"
    path = Path(client.download_artifacts(run_id, kept, str(tmp_path)))
    assert sha256(path.read_text()) == change.evidence_sha256
    assert json.loads(path.read_text())["checks"] == [{"reference": "s3://bucket/x"}]


def test_who_lost_the_lock_writes_no_change_down(registered: Case) -> None:
    change = Change("skills", "promote", 1, None, now(), "ann")
    with writing(registered.tracking, "skills") as held:
        client = registered.tracking.client
        [claim] = [tag for tag in client.get_registered_model("skills").tags if CLAIM in tag]
        client.delete_registered_model_tag("skills", claim)
        with pytest.raises(TrackingError, match="was taken over by another writer"):
            apply(registered.tracking, change, held)
    assert begun(registered.tracking, "skills") is None


def test_promoting_the_champion_again_changes_nothing(registered: Case) -> None:
    move(registered, 1)
    change = move(registered, 2)
    assert move(registered, 2) == change
    assert aliases(registered) == {"champion": 2, "previous": 1}
    assert len(audit(registered.tracking, "skills")) == 2


def test_without_evidence_it_is_refused_marked_and_audited(registered: Case) -> None:
    move(registered, 1)
    message = "version 2 of skills is not promoted: not better than math: p = 0.4"
    with pytest.raises(GateRefusedError, match=f"^{message}$"):
        move(registered, 2, passed=False, verdict=REFUSAL)
    assert aliases(registered) == {"champion": 1}
    assert statuses(registered)[2] == "rejected"
    assert kinds(registered) == [("promote", None, 1), ("refused", 1, 2)]


def test_too_few_items_to_tell_leave_it_a_candidate(registered: Case) -> None:
    with pytest.raises(GateRefusedError, match="the evidence does not support it"):
        move(registered, 2, passed=False, verdict={"decision": "inconclusive", "reasons": []})
    assert statuses(registered)[2] == "candidate"
    assert kinds(registered) == [("refused", None, 2)]


def test_a_champion_that_fails_the_gate_later_stays_promoted(registered: Case) -> None:
    move(registered, 1)
    with pytest.raises(GateRefusedError):
        move(registered, 1, passed=False, verdict=REFUSAL)
    assert statuses(registered)[1] == "promoted"


def test_force_needs_a_reason_and_the_audit_keeps_it(registered: Case) -> None:
    with pytest.raises(ConfigError, match="--force needs --reason"):
        move(registered, 2, passed=False, force=True, reason=" ")
    change = move(registered, 2, passed=False, verdict=REFUSAL, force=True, reason="demo on Monday")
    assert (change.forced, change.reason, change.kind) == (True, "demo on Monday", "promote")
    assert aliases(registered) == {"champion": 2}
    assert audit(registered.tracking, "skills") == [change]


def test_force_that_was_not_needed_is_not_called_forced(registered: Case) -> None:
    assert move(registered, 2, force=True, reason="to be sure").forced is False


@pytest.mark.parametrize(("expected", "now"), [(1, "version 2"), (3, "version 2")])
def test_another_champion_than_expected_is_a_refusal(
    registered: Case, expected: int, now: str
) -> None:
    move(registered, 2)
    with pytest.raises(
        TrackingError, match=f"champion is {now}, not version {expected} as expected"
    ):
        move(registered, 3, expect_current=expected)
    assert aliases(registered) == {"champion": 2}
    move(registered, 3, expect_current=2)


def test_no_champion_where_one_is_expected_is_a_refusal(registered: Case) -> None:
    with pytest.raises(TrackingError, match="champion is no version, not version 1 as expected"):
        move(registered, 3, expect_current=1)


def test_rollback_swaps_champion_and_previous_and_can_be_undone(registered: Case) -> None:
    move(registered, 1)
    move(registered, 3)
    change = rollback(registered.tracking, "skills", user="ben", reason="latency")
    assert change.to_dict() == {
        "name": "skills",
        "kind": "rollback",
        "to": 1,
        "from": 3,
        "at": change.at,
        "by": "ben",
        "evidence_sha256": None,
        "forced": False,
        "reason": "latency",
        "proposed_by": None,
        "hooks": [],
    }
    assert aliases(registered) == {"champion": 1, "previous": 3}
    assert statuses(registered) == {1: "promoted", 2: "candidate", 3: "superseded"}
    rollback(registered.tracking, "skills", user="ben", expect_current=1)
    assert aliases(registered) == {"champion": 3, "previous": 1}
    assert [kind for kind, _, _ in kinds(registered)] == ["promote"] * 2 + ["rollback"] * 2


@pytest.mark.parametrize("expected", [None, 3])
def test_the_same_rollback_again_does_not_undo_the_first(
    registered: Case, expected: int | None
) -> None:
    move(registered, 1)
    move(registered, 3)
    first = rollback(registered.tracking, "skills", user="ben", expect_current=expected)
    again = rollback(registered.tracking, "skills", user="ben", expect_current=expected)
    assert (again, again.was_made) == (first, True)
    assert aliases(registered) == {"champion": 1, "previous": 3}
    assert [kind for kind, _, _ in kinds(registered)] == ["promote"] * 2 + ["rollback"]


def test_rollback_needs_a_champion_and_a_previous_one(registered: Case) -> None:
    with pytest.raises(TrackingError, match="skills has no @champion; promote a version first"):
        rollback(registered.tracking, "skills", user="ben")
    move(registered, 1)
    with pytest.raises(TrackingError, match="no @previous version to go back to; version 1 is"):
        rollback(registered.tracking, "skills", user="ben")


def test_names_and_versions_that_do_not_exist_are_named(registered: Case) -> None:
    with pytest.raises(TrackingError, match="skills has no version 9; its versions: 1, 2, 3"):
        move(registered, 9)
    with pytest.raises(TrackingError, match="there is no registered model 'other'"):
        make_champion(registered.tracking, "other", 1, VERDICT, passed=True, user="ann")
    with pytest.raises(TrackingError, match="there is no registered model 'other'"):
        rollback(registered.tracking, "other", user="ann")
    with pytest.raises(TrackingError, match="there is no registered model 'other'"):
        candidates(registered.tracking, "other")


class KilledError(BaseException):
    """As kill -9."""


class Dying:
    """A client whose process dies right after its ``fatal``-th write."""

    def __init__(self, client: Any, fatal: int) -> None:
        self.client, self.left = client, fatal

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = member(*args, **kwargs)
            if name.startswith(("set_", "delete_", "log_")):
                self.left -= 1
                if self.left == 0:
                    raise KilledError
            return result

        return call


def killed_after(case: Case, writes: int, act: Callable[[Case], object]) -> bool:
    """Do it in a process that dies after so many writes; False where it lived."""
    client: Any = Dying(case.tracking.client, writes)
    try:
        act(dataclasses.replace(case, tracking=dataclasses.replace(case.tracking, client=client)))
    except KilledError:
        return True
    return False


@pytest.mark.parametrize("writes", range(1, 11))
def test_a_promotion_killed_after_any_write_is_completed_by_the_same_command(
    registered: Case, writes: int
) -> None:
    move(registered, 1)
    move(registered, 2)
    assert killed_after(registered, writes, lambda case: move(case, 3))
    move(registered, 3)
    assert aliases(registered) == {"champion": 3, "previous": 2}
    assert statuses(registered) == {1: "superseded", 2: "superseded", 3: "promoted"}
    assert kinds(registered) == [
        ("promote", None, 1),
        ("promote", 1, 2),
        ("promote", 2, 3),
    ]
    tags = registered.tracking.client.get_registered_model("skills").tags
    assert not [tag for tag in tags if "change_in_progress" in tag]
    # MLflow's pages show no tag that begins with "mlflow.": the model's page is no wall of digests.
    assert tags and all(tag.startswith("mlflow.mergeops.") for tag in tags)


def test_a_promotion_makes_no_more_writes_than_are_tested(registered: Case) -> None:
    move(registered, 1)
    move(registered, 2)
    assert not killed_after(registered, 12, lambda case: move(case, 3))


@pytest.mark.parametrize("writes", range(2, 9))  # the first is the lock
def test_a_rollback_killed_after_any_write_is_completed_and_not_undone(
    registered: Case, writes: int
) -> None:
    move(registered, 1)
    move(registered, 2)
    act: Callable[[Case], object] = lambda case: rollback(  # noqa: E731
        case.tracking, "skills", user="ben"
    )
    assert killed_after(registered, writes, act)
    # Any later command completes what was begun.
    with pytest.raises(TrackingError, match="not version 7 as expected"):
        move(registered, 3, expect_current=7)
    assert aliases(registered) == {"champion": 1, "previous": 2}
    assert statuses(registered) == {1: "promoted", 2: "superseded", 3: "candidate"}
    assert kinds(registered)[-1] == ("rollback", 2, 1)
    assert len(audit(registered.tracking, "skills")) == 3


@pytest.mark.parametrize("writes", range(1, 7))
@pytest.mark.parametrize("expected", [None, 2])
def test_the_same_rollback_again_completes_one_that_was_killed(
    registered: Case, writes: int, expected: int | None
) -> None:
    move(registered, 1)
    move(registered, 2)

    def back(case: Case) -> Change:
        return rollback(case.tracking, "skills", user="ben", expect_current=expected)

    assert killed_after(registered, writes, back)
    assert back(registered) == audit(registered.tracking, "skills")[-1]
    assert aliases(registered) == {"champion": 1, "previous": 2}
    assert kinds(registered)[2:] == [("rollback", 2, 1)]


@pytest.mark.parametrize("gone", ["2", "3"])
@pytest.mark.parametrize("writes", [2, 4, 6, 7, 8])
def test_a_change_that_was_killed_stops_no_other_when_its_version_is_deleted(
    registered: Case, writes: int, gone: str
) -> None:
    move(registered, 1)
    move(registered, 2)
    assert killed_after(registered, writes, lambda case: move(case, 3))
    registered.tracking.client.delete_model_version("skills", gone)
    move(registered, 1)
    assert aliases(registered)["champion"] == 1
    assert begun(registered.tracking, "skills") is None


@pytest.mark.parametrize("writes", [3, 5, 7, 9, 11])
def test_an_approval_killed_after_any_write_is_complete_or_can_be_given_again(
    registered: Case, writes: int
) -> None:
    move(registered, 1)
    move(registered, 2, approval=True)
    act: Callable[[Case], object] = lambda case: approve(  # noqa: E731
        case.tracking, "skills", user="ben"
    )
    assert killed_after(registered, writes, act)
    assert aliases(registered)["champion"] in (1, 2)
    assert approve(registered.tracking, "skills", user="ben", version=2).to == 2
    assert aliases(registered) == {"champion": 2, "previous": 1}
    assert kinds(registered)[1:] == [("proposed", 1, 2), ("promote", 1, 2)]


def test_a_change_begun_long_ago_does_not_overrule_what_was_set_by_hand_since(
    registered: Case,
) -> None:
    move(registered, 1)
    assert killed_after(registered, 3, lambda case: move(case, 2))
    registered.tracking.client.set_registered_model_alias("skills", "champion", "3")
    with pytest.raises(TrackingError, match="champion is version 3, not version 9"):
        move(registered, 2, expect_current=9)
    assert aliases(registered)["champion"] == 3


def test_a_writer_elsewhere_that_was_faster_is_noticed(registered: Case) -> None:
    move(registered, 1)

    class Raced:
        def __getattr__(self, name: str) -> Any:
            return getattr(registered.tracking.client, name)

        def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
            client = registered.tracking.client
            client.set_registered_model_alias(name, alias, "3" if alias == "champion" else version)

    raced: Any = Raced()
    tracking = dataclasses.replace(registered.tracking, client=raced)
    with pytest.raises(TrackingError, match="champion became version 3 while version 2 was being"):
        move(dataclasses.replace(registered, tracking=tracking), 2)


def test_two_promotions_on_one_machine_exclude_each_other(registered: Case) -> None:
    with (
        only_one("another promotion", registered.tracking.uri, "skills"),
        pytest.raises(TrackingError, match="the champion of skills is being worked on by process"),
    ):
        move(registered, 1)


def test_candidates_come_best_dev_score_first_and_unscored_ones_last(case: Case) -> None:
    for digest, hits in (("1", 2), ("2", 7), ("3", None), ("4", 5)):
        with case.trial(plan_digest=digest * 64, name=f"merge {digest}") as log:
            log.log_model(case.checkpoint, weights_sha256=digest * 64)
            if hits is not None:
                log.log_scores(make_scores(right={"dates": hits}))
            register_trial(log)
    found = candidates(case.tracking, "skills")
    assert [c.version for c in found] == [2, 4, 1, 3]
    assert [c.dev_score for c in found[:3]] == [0.875, 0.625, 0.25]
    assert math.isnan(found[3].dev_score)
    best = found[0]
    assert (best.plan_digest, best.weights_sha256, best.status) == ("2" * 64, "2" * 64, "candidate")
    assert (
        own_tags(case.tracking.client.get_run(best.run_id).data.tags)["mergeops.model_id"]
        == best.model_id
    )


def test_scores_on_other_questions_than_the_newest_ones_are_not_compared(case: Case) -> None:
    for digest, hits, n in (("1", 8, 8), ("2", 20, 40), ("3", 30, 40)):
        with case.trial(plan_digest=digest * 64, name=f"merge {digest}") as log:
            log.log_model(case.checkpoint, weights_sha256=digest * 64)
            log.log_scores(make_scores(right={"dates": hits}, n=n))
            register_trial(log)
    found = candidates(case.tracking, "skills")
    assert [(c.version, c.dev_score) for c in found] == [(3, 0.75), (2, 0.5), (1, 1.0)]


def test_where_lower_is_better_the_lowest_comes_first(case: Case) -> None:
    for digest, hits in (("1", 4), ("2", 2)):
        scores = make_scores(right={"perplexity": hits})
        task = dataclasses.replace(scores.tasks["perplexity"], higher_is_better=False)
        with case.trial(plan_digest=digest * 64, name=f"merge {digest}") as log:
            log.log_model(case.checkpoint, weights_sha256=digest * 64)
            log.log_scores(dataclasses.replace(scores, tasks={"perplexity": task}))
            register_trial(log)
    assert [c.version for c in candidates(case.tracking, "skills")] == [2, 1]


def test_registered_sources_are_no_candidates(registered: Case) -> None:
    client = registered.tracking.client
    client.create_model_version("skills", "s3://bucket/x", tags={"mergeops.role": "source"})
    assert {c.version for c in candidates(registered.tracking, "skills")} == {1, 2, 3}


def test_a_merge_whose_run_was_deleted_is_no_candidate(registered: Case) -> None:
    client = registered.tracking.client
    client.delete_run(str(client.get_model_version("skills", "1").run_id))
    assert {c.version for c in candidates(registered.tracking, "skills")} == {2, 3}
