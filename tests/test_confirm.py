"""What is refused before the confirm part is opened, so that no use of it is spent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tracking_case import Case

from mergeops import confirm
from mergeops.errors import ConfigError, EvaluationError, GateRefusedError, TrackingError
from mergeops.progress import Progress
from mergeops.promote import promote
from mergeops.recipe import Recipe
from mergeops.tracking.confirm_uses import uses


@pytest.fixture
def championed(registered: Case, monkeypatch: pytest.MonkeyPatch) -> Case:
    """Version 1 is champion; the tools know the store, and nothing that could score."""
    promote(registered.tracking, "skills", 1, {}, passed=True, user="ann")
    tools = SimpleNamespace(tracking=registered.tracking)
    monkeypatch.setattr(confirm, "Tools", lambda *_, **__: tools)
    return registered


def attempt(case: Case, settings: Recipe | None = None, **options: Any) -> None:
    confirm.promote(settings or case.recipe, "skills", Progress(quiet=True), **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"force": True}, ConfigError, "--force needs --reason"),
        ({"version": 9}, TrackingError, "version 9 of skills is no merge .* merges: 1, 2, 3"),
        ({"version": 1}, GateRefusedError, "version 1 of skills is @champion already; nothing to"),
        ({}, GateRefusedError, "version 1 of skills, the best on dev, is @champion already"),
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


def test_a_hook_that_cannot_be_signed_opens_nothing(
    championed: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_SECRET", raising=False)
    raw = championed.recipe.to_dict()
    raw["promote"]["hooks"] |= {"webhook": "https://example.org", "secret_env": "NO_SUCH_SECRET"}
    with pytest.raises(ConfigError, match="set NO_SUCH_SECRET in the environment"):
        attempt(championed, Recipe.from_dict(raw), version=2)
    assert uses(championed.tracking, "skills") == []
