"""The history shows everything that happened, and where things are now."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from support.tracking_case import Case

from mergeops.cli.main import cli
from mergeops.cli.promote import print_history, print_promotion
from mergeops.errors import GateRefusedError
from mergeops.promotion.approval import approve, reject
from mergeops.promotion.champion import make_champion, rollback
from mergeops.promotion.gate import Verdict
from mergeops.promotion.history import read_history
from mergeops.promotion.hooks import deliver
from mergeops.promotion.uses import Use, count_use
from mergeops.recipe.settings import HooksSpec


@pytest.fixture
def lived(registered: Case) -> Case:
    """A model whose history has one of everything."""
    tracking = registered.tracking
    use = Use(1, "w", {"base": "b"}, ("add",), {"add": "1"}, "2026-01-01T00:00:00Z", "ann", 0.05)
    count_use(tracking, "skills", use)
    why = "^version 1 of skills is not promoted: worse than base; and 1 more: `mergeops history"
    with pytest.raises(GateRefusedError, match=why):
        make_champion(
            tracking,
            "skills",
            1,
            {"decision": "refuse", "reasons": ["worse than base", "and more"]},
            passed=False,
            user="ann",
        )
    make_champion(tracking, "skills", 1, {}, passed=False, user="ann", force=True, reason="a demo",
            hooks=("command",))  # fmt: skip
    deliver(tracking, "skills", HooksSpec(command=("false",), attempts=1))
    for version in (2, 3):
        make_champion(tracking, "skills", version, {}, passed=True, user="ann", approval=True)
        if version == 2:
            reject(tracking, "skills", user="ben", reason="too slow")
    approve(tracking, "skills", user="ben")
    rollback(tracking, "skills", user="eve", reason="latency")
    return registered


def test_every_kind_of_event_is_a_line_with_who_and_why(lived: Case) -> None:
    found = read_history(lived.tracking, "skills")
    lines = [(event.what, event.version, event.by) for event in found.events]
    assert lines == [
        ("confirm use 1", 1, "ann"),
        ("refused by the gate", 1, "ann"),
        ("promoted", 1, "ann"),
        ("not told command", 1, "ann"),
        ("proposed", 2, "ann"),
        ("rejected", 2, "ben"),
        ("proposed", 3, "ann"),
        ("approved and promoted", 3, "ben"),
        ("rolled back", 1, "eve"),
    ]
    about = [event.about for event in found.events]
    assert about[0] == "level 0.025 of alpha 0.05; against base"
    assert about[1].startswith("no champion before; worse than base; and more; evidence ")
    assert "FORCED: a demo" in about[2]
    assert about[3] == "1 tries: false ended with 1"
    assert about[5].startswith("champion was version 1; proposed by ann; too slow")
    assert about[8] == "champion was version 3; latency"
    assert (found.champion, found.previous, found.challenger) == (1, 3, None)


def test_the_history_is_json_and_a_table(lived: Case, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_history(lived.tracking, "skills")
    plain = json.loads(json.dumps(found.to_dict()))
    assert [event["record"].get("kind") for event in plain["events"]][1:3] == [
        "refused",
        "promote",
    ]
    assert plain["unfinished"] is None
    print_history(found)
    shown = capsys.readouterr().out
    assert "skills: @champion is version 1, @previous is version 3" in shown
    assert "FORCED" in shown


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (
            "3",
            r"skills@champion is version 1, rolled back at \S+ by eve, not version 3 as expected",
        ),
        ("0", r"skills@champion is version 1, .* not no version as expected"),
        ("1", ""),
    ],
)
def test_a_build_fails_where_another_champion_is_than_it_expects(
    lived: Case, expected: str, message: str
) -> None:
    words = ["history", "skills", f"tracking.uri={lived.tracking.uri}"]
    done = CliRunner().invoke(cli, [*words, "--expect-current", expected])
    assert "@champion is version 1, @previous is version 3" in done.output
    if not message:
        assert done.exit_code == 0
        return
    assert isinstance(done.exception, GateRefusedError) and done.exception.exit_code == 7
    assert re.search(message, str(done.exception))


@pytest.mark.parametrize(
    ("decision", "becomes"),
    [("inconclusive", "stays a candidate"), ("refuse", "is marked as rejected")],
)
def test_what_the_gate_refuses_is_said_with_the_status_that_it_has_now(
    decision: str, becomes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome: Any = SimpleNamespace(
        name="skills",
        version=2,
        use=SimpleNamespace(number=1, level=0.025),
        verdict=Verdict(decision, (), ("worse than base",), 0.025),
        change=None,
        links={"version": "http://mlflow/#/models/skills/versions/2"},
    )
    print_promotion(outcome)
    shown = capsys.readouterr().out
    assert f"{decision}: version 2 of skills {becomes}" in shown
    assert "http://mlflow/#/models/skills/versions/2" in shown
    # The error's line has it, and says it once.
    assert "worse than base" not in shown
