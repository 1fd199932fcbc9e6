"""``mergeops open``: which page of MLflow a name means."""

from __future__ import annotations

import dataclasses

import pytest
from support.tracking_case import Case

from mergeops.cli.open import page_of
from mergeops.errors import TrackingError
from mergeops.store.connection import Tracking

ML = "?workflowType=machine_learning"


@pytest.fixture
def served(registered: Case) -> Tracking:
    """The store of three versions, as if a server served it."""
    return dataclasses.replace(registered.tracking, uri="http://mlflow:5000")


def test_without_a_name_it_is_the_leaderboard(served: Tracking) -> None:
    page = f"http://mlflow:5000/#/experiments/{served.experiment_id}/models{ML}"
    assert page_of(served, None) == page


def test_a_model_a_version_and_an_alias_have_their_pages(served: Tracking) -> None:
    served.client.set_registered_model_alias("skills", "champion", "2")
    base = "http://mlflow:5000/#/models/skills"
    assert page_of(served, "skills") == f"{base}{ML}"
    assert page_of(served, "models:/skills/3") == f"{base}/versions/3{ML}"
    assert page_of(served, "models:/skills@champion") == f"{base}/versions/2{ML}"


def test_a_run_is_shown_in_its_own_experiment(served: Tracking, registered: Case) -> None:
    """The training run of a source lies in another one."""
    run_id = registered.sources["math"].run_id
    experiment = served.client.get_run(run_id).info.experiment_id
    assert experiment != served.experiment_id
    page = f"http://mlflow:5000/#/experiments/{experiment}/runs/{run_id}{ML}"
    assert page_of(served, f"runs:/{run_id}") == page


def test_what_has_no_page_says_why(served: Tracking, registered: Case) -> None:
    for what, why in (
        ("skills@nobody", "skills has no alias 'nobody'; its aliases: none"),
        ("skills/9", "skills has no version 9; its versions: 1, 2, 3"),
        ("models:/skills/new", "names no version"),
        ("nothing", "there is no registered model 'nothing'"),
    ):
        with pytest.raises(TrackingError, match=why):
            page_of(served, what)
    with pytest.raises(TrackingError, match="a database without a server; start one, `mlflow serv"):
        page_of(registered.tracking, None)
