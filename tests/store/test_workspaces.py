"""Which workspace is meant, and that the environment of the user is left as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mergeops.errors import TrackingError
from mergeops.recipe.settings import TrackingSpec
from mergeops.store import workspaces
from mergeops.store.connection import Tracking
from mergeops.store.workspaces import VARIABLE, chosen_workspace, enter

SERVER = "http://mlflow.example:5000"


@pytest.fixture(autouse=True)
def none_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from mlflow.utils.workspace_context import set_workspace

    monkeypatch.setenv(VARIABLE, "before")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(workspaces, "_switched", (None, ""))
    yield
    set_workspace(None)


def test_the_recipe_decides_then_the_environment_then_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert chosen_workspace(TrackingSpec(), SERVER) == ""
    monkeypatch.setenv(VARIABLE, " team-a ")
    assert chosen_workspace(TrackingSpec(), SERVER) == "team-a"
    assert chosen_workspace(TrackingSpec(workspace="team-b"), SERVER) == "team-b"
    # What is kept may say that none was chosen.
    assert chosen_workspace(TrackingSpec(workspace=""), SERVER) == ""


def test_one_connection_does_not_choose_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.utils.workspace_context import get_request_workspace

    monkeypatch.setenv(VARIABLE, "team-a")
    for workspace in ("team-b", "team-c", ""):
        enter(workspace)
        assert (get_request_workspace() or "") == workspace
        assert chosen_workspace(TrackingSpec(), SERVER) == "team-a"
    # The user chooses what another connection was made for.
    enter("team-d")
    monkeypatch.setenv(VARIABLE, "team-d")
    assert chosen_workspace(TrackingSpec(), SERVER) == "team-d"


def test_a_database_has_none_and_leaves_the_variable_alone(
    monkeypatch: pytest.MonkeyPatch, tracking: Tracking
) -> None:
    monkeypatch.setenv(VARIABLE, "team-a")
    assert chosen_workspace(TrackingSpec(), tracking.uri) == ""
    tracking.client.search_experiments()
    assert os.environ[VARIABLE] == "team-a"
    with pytest.raises(TrackingError, match="is opened directly and has none; use the address of"):
        chosen_workspace(TrackingSpec(workspace="team-a"), tracking.uri)
