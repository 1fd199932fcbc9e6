"""What is refused before the confirm part is opened, so that no use of it is spent."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.tracking_case import Case

from mergeops.cli.promote import print_promotion
from mergeops.errors import AwayError, ConfigError, EvaluationError, GateRefusedError, TrackingError
from mergeops.progress import Progress
from mergeops.promotion import confirm, references
from mergeops.promotion.audit import PROMOTE, Change, audit, now
from mergeops.promotion.champion import make_champion, rollback
from mergeops.promotion.changes import IN_PROGRESS, apply, writing
from mergeops.promotion.controls import _status
from mergeops.promotion.hooks import deliveries
from mergeops.promotion.uses import uses
from mergeops.recipe.composition import compose
from mergeops.recipe.recipe import Recipe


@pytest.fixture
def championed(registered: Case, monkeypatch: pytest.MonkeyPatch) -> Case:
    """Version 1 is champion; the tools know the store, and nothing that could score."""
    make_champion(registered.tracking, "skills", 1, {}, passed=True, user="ann")
    tools = SimpleNamespace(tracking=registered.tracking)
    monkeypatch.setattr(confirm, "connect", lambda *_: registered.tracking)
    monkeypatch.setattr(confirm, "Tools", lambda *_, **__: tools)
    return registered


def attempt(case: Case, settings: Recipe | None = None, **options: Any) -> confirm.Outcome:
    return confirm.promote(settings or case.recipe, "skills", Progress(quiet=True), **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"force": True}, ConfigError, "--force needs --reason"),
        ({"version": 9}, TrackingError, "version 9 of skills is no merge .* merges: 1, 2, 3"),
        (
            {"version": 1, "expect_current": 2},
            TrackingError,
            "skills@champion is version 1, not version 2 as expected",
        ),
        (
            {"version": 2, "expect_current": 3},
            TrackingError,
            "skills@champion is version 1, not version 3 as expected",
        ),
        (
            {"version": 2, "expect_current": 0},
            TrackingError,
            "skills@champion is version 1, not no version as expected",
        ),
        ({"version": 2}, EvaluationError, "version 2 was merged without evaluate.tasks"),
    ],
)
def test_what_cannot_end_in_a_promotion_opens_nothing(
    championed: Case, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        attempt(championed, **options)
    assert uses(championed.tracking, "skills") == []


@pytest.mark.parametrize("options", [{}, {"version": 1}, {"expect_current": 0}])
def test_the_command_that_promoted_says_that_it_is_done_when_it_is_given_again(
    championed: Case, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    [made] = audit(championed.tracking, "skills")
    outcome = attempt(championed, **options)
    outcome.raise_if_refused()
    assert (outcome.promoted, outcome.version, outcome.change) == (True, 1, made)
    assert uses(championed.tracking, "skills") == []
    print_promotion(outcome)
    said = " ".join(capsys.readouterr().out.split())
    assert "@champion is version 1 (the first one); done before, by ann at " + made.at in said
    assert outcome.to_dict()["verdict"] is None


def test_a_champion_that_was_set_by_hand_is_nothing_to_promote(
    championed: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    championed.tracking.client.set_registered_model_alias("skills", "champion", "2")
    outcome = attempt(championed, version=2)
    assert (outcome.promoted, outcome.change) == (True, None)
    print_promotion(outcome)
    assert "version 2 of skills is @champion already, set by hand" in capsys.readouterr().out


def test_a_hook_that_cannot_be_signed_opens_nothing(
    championed: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_SECRET", raising=False)
    raw = championed.recipe.to_dict()
    raw["promote"]["hooks"] |= {
        "webhook": "https://example.org",
        "secret_env": "NO_SUCH_SECRET",
    }
    with pytest.raises(ConfigError, match="set NO_SUCH_SECRET in the environment"):
        attempt(championed, Recipe.from_dict(raw), version=2)
    assert uses(championed.tracking, "skills") == []


def test_a_version_that_was_rolled_back_is_not_chosen_again_unless_named(championed: Case) -> None:
    for version in (2, 1):
        make_champion(championed.tracking, "skills", version, {}, passed=True, user="ann")
    rollback(championed.tracking, "skills", user="ben", reason="too slow")
    message = (
        "version 1 of skills, the best on dev, was rolled back by ben: too slow; "
        "judge it again by --version 1"
    )
    with pytest.raises(GateRefusedError, match=message):
        attempt(championed)
    with pytest.raises(EvaluationError, match="version 1 was merged without evaluate.tasks"):
        attempt(championed, version=1)
    assert uses(championed.tracking, "skills") == []


def test_a_half_done_promotion_is_completed_before_the_champion_is_read(championed: Case) -> None:
    left = Change("skills", PROMOTE, 2, 1, now(), "ann")
    championed.tracking.client.set_registered_model_tag(
        "skills", IN_PROGRESS, json.dumps(left.to_dict())
    )
    outcome = attempt(championed, version=2)
    assert (outcome.promoted, outcome.change) == (True, left)
    assert uses(championed.tracking, "skills") == []


@pytest.mark.parametrize("was_cut_off", [True, False])
def test_the_same_command_tells_what_one_that_was_killed_did_not(
    championed: Case, tmp_path: Path, was_cut_off: bool
) -> None:
    change = Change("skills", PROMOTE, 2, 1, now(), "ann", hooks=("command",))
    tags = championed.tracking.client.set_registered_model_tag
    if was_cut_off:
        tags("skills", IN_PROGRESS, json.dumps(change.to_dict()))
    else:
        with writing(championed.tracking, "skills") as held:
            apply(championed.tracking, change, held)
    raw = championed.recipe.to_dict()
    raw["promote"]["hooks"] |= {"command": ["touch", str(tmp_path / "told")]}
    assert attempt(championed, Recipe.from_dict(raw), version=2).promoted
    assert (tmp_path / "told").exists()
    [told] = deliveries(championed.tracking, "skills")
    assert (told.pending, set(told.done)) == ((), {"command"})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "nothing to compare with: promote.against asks for best_parent"),
        ([("champion:1", "same")], "version 2 is champion:1: the same weights"),
    ],
)
def test_what_no_score_can_promote_opens_nothing_unless_it_is_forced(
    championed: Case,
    monkeypatch: pytest.MonkeyPatch,
    labels: list[tuple[str, str]],
    message: str,
) -> None:
    found = [SimpleNamespace(label=a, source=SimpleNamespace(sha256=b)) for a, b in labels]
    if found:
        weights = confirm.choose(championed.tracking, "skills", 2).weights_sha256
        found[0].source.sha256 = weights
    monkeypatch.setattr(confirm, "recipe_of", lambda *_: championed.recipe)
    monkeypatch.setattr(confirm, "_guard_tools", lambda *_: None)
    monkeypatch.setattr(confirm, "find_references", lambda *_: found)

    def opened(*_: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(confirm, "_open", opened)
    with pytest.raises(GateRefusedError, match=message):
        attempt(championed, version=2)
    with pytest.raises(InterruptedError):
        attempt(championed, version=2, force=True, reason="a demo")


def test_a_server_that_is_away_is_not_taken_for_missing_scores(
    championed: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise AwayError("no route to host")

    for module in (confirm, references):
        monkeypatch.setattr(module, "read_scores", away)
    tools: Any = SimpleNamespace(tracking=championed.tracking)
    with pytest.raises(AwayError):
        confirm._dev_scores(tools, "skills", confirm.choose(championed.tracking, "skills", 2))
    with pytest.raises(AwayError):
        references._logged_dev_scores(tools, "skills", 1)
    gone: Any = SimpleNamespace(
        resolve=lambda _: SimpleNamespace(sources={"math": SimpleNamespace(run_id="r")}),
        tracking=SimpleNamespace(client=SimpleNamespace(get_run=away)),
    )
    with pytest.raises(AwayError):
        _status(gone, championed.recipe, "math")


def test_a_promotion_cannot_name_clusters_that_the_merge_was_not_chosen_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = compose(["sources.a.uri=/a", "method=linear", "evaluate.tasks=[squad]"])
    later = compose(
        ["sources.a.uri=/a", "method=linear", "evaluate.tasks=[squad]", "evaluate.clusters.squad=p"]
    )
    candidate: Any = SimpleNamespace(version=3, run_id="r")
    tracking: Any = None

    def recipe_of(logged: Recipe, settings: Recipe) -> Recipe:
        monkeypatch.setattr(confirm, "read_recipe", lambda *_: logged.to_dict())
        return confirm.recipe_of(tracking, settings, candidate)

    message = r"evaluate\.clusters\.squad is 'p', but version 3 was chosen with no clusters"
    with pytest.raises(EvaluationError, match=message):
        recipe_of(recipe, later)
    assert recipe_of(later, later).evaluate.clusters == {"squad": "p"}
    assert recipe_of(later, recipe).evaluate.clusters == {"squad": "p"}
