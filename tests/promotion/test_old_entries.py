"""What mergeops 0.1 wrote into the registry is read on: the same tags, in the open."""

from __future__ import annotations

import dataclasses
import json

import pytest
from support.tracking_case import Case, sha256

from mergeops.promotion.audit import PROMOTE, Change, audit, now
from mergeops.promotion.candidates import candidates
from mergeops.promotion.champion import make_champion
from mergeops.promotion.changes import IN_PROGRESS, PROPOSAL, aliases, begun, complete, proposal
from mergeops.promotion.history import read_history
from mergeops.promotion.uses import Use, count_use, uses
from mergeops.store import own_tags
from mergeops.tracking.versions import find_registered_model, find_version

USE = Use(
    1,
    "w",
    {"base": "b"},
    ("add",),
    {"add": "1"},
    "2026-01-01T00:00:00Z",
    "ann",
    0.05,
    sketches={"1": "aa bb"},
)


def open_tags(case: Case) -> None:
    """Spell every hidden tag of the model and its versions as 0.1 did."""
    client = case.tracking.client
    for tag, value in find_registered_model(case.tracking, "skills").tags.items():
        client.set_registered_model_tag("skills", tag.removeprefix("mlflow."), value)
        client.delete_registered_model_tag("skills", tag)
    for number in (1, 2, 3):
        tags = find_version(case.tracking, "skills", number).tags
        for tag, value in own_tags(tags).items():
            client.set_model_version_tag("skills", str(number), tag, value)
        for tag in tags:
            if tag.startswith("mlflow."):
                client.delete_model_version_tag("skills", str(number), tag)


@pytest.fixture
def old(registered: Case) -> Case:
    """A model with a use and a promotion, in the words of 0.1."""
    count_use(registered.tracking, "skills", USE)
    make_champion(registered.tracking, "skills", 2, {}, passed=True, user="ann")
    open_tags(registered)
    tags = find_registered_model(registered.tracking, "skills").tags
    assert {tag.rpartition(".")[0].split(".")[0] for tag in tags} == {"mergeops"}
    return registered


def test_the_history_and_the_uses_are_those_that_were(old: Case) -> None:
    assert [event.what for event in read_history(old.tracking, "skills").events] == [
        "confirm use 1",
        "promoted",
    ]
    [use] = uses(old.tracking, "skills")
    assert (use.number, use.sketches) == (1, {"1": "aa bb"})


def test_a_use_after_an_old_one_is_the_second(old: Case) -> None:
    other = dataclasses.replace(USE, weights_sha256="other")
    assert count_use(old.tracking, "skills", other).number == 2
    assert len(uses(old.tracking, "skills")) == 2


def test_the_candidates_are_found_by_their_old_tags(old: Case) -> None:
    found = candidates(old.tracking, "skills")
    assert sorted(merge.version for merge in found) == [1, 2, 3]
    assert {merge.plan_digest for merge in found} == {digest * 64 for digest in "123"}
    assert {merge.status for merge in found} == {"candidate", "promoted"}
    assert {merge.weights_sha256 for merge in found} == {sha256("weights of merge")}


def test_an_old_version_is_found_and_not_made_again(old: Case) -> None:
    assert old.whole(plan_digest="3" * 64, name="merge 3")[1] == 3
    assert len(candidates(old.tracking, "skills")) == 3


def test_a_change_that_0_1_left_half_done_is_completed_once(old: Case) -> None:
    left = Change("skills", PROMOTE, 3, 2, now(), "ann")
    old.tracking.client.set_registered_model_tag("skills", IN_PROGRESS, json.dumps(left.to_dict()))
    assert begun(old.tracking, "skills") == left
    assert complete(old.tracking, "skills")
    assert begun(old.tracking, "skills") is None
    assert aliases(old.tracking, "skills") == {"champion": 3, "previous": 2}
    assert [change.to for change in audit(old.tracking, "skills")] == [2, 3]


def test_an_old_proposal_is_closed_by_its_promotion(old: Case) -> None:
    waiting = make_champion(old.tracking, "skills", 3, {}, passed=True, user="ann", approval=True)
    open_tags(old)
    assert proposal(old.tracking, "skills") == waiting
    make_champion(old.tracking, "skills", 3, {}, passed=True, user="ben")
    assert proposal(old.tracking, "skills") is None
    tags = find_registered_model(old.tracking, "skills").tags
    assert PROPOSAL not in own_tags(tags)
