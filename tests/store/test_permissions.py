"""What a refused account is told: who, what, and which permission it takes."""

from __future__ import annotations

import pytest

from mergeops.store.permissions import denied, needed

DENIED = "API request to endpoint /x failed with error code 403 != 200. Response body: 'Permission'"


@pytest.mark.parametrize(
    ("step", "permission"),
    [
        ("set registered model alias", "EDIT of the registered model and READ of its versions"),
        (
            "delete registered model alias",
            "MANAGE of the registered model and READ of its versions",
        ),
        (
            "get model version",
            "READ of the registered model and its versions, where there is one",
        ),
        ("delete registered model tag", "EDIT of the registered model"),
        ("create model version", "EDIT of the registered model"),
        ("delete run", "MANAGE of the experiment"),
        ("log batch", "EDIT of the experiment"),
        ("get registered model", "READ of the registered model, where there is one"),
        ("create webhook", "an administrator's account"),
        ("create registered model", "the right to make a registered model (USE of the workspace)"),
    ],
)
def test_each_step_names_the_permission_that_it_takes(step: str, permission: str) -> None:
    assert needed(step) == permission


def test_who_is_named_is_the_account_or_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    step = ("http://h", "set registered model alias", "skills")
    assert str(denied(DENIED, *step)).endswith("or MLFLOW_TRACKING_TOKEN")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "x")
    assert "this account may not set registered model alias 'skills'" in str(denied(DENIED, *step))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    assert str(denied(DENIED, *step)) == (
        "the MLflow server at http://h denies access: the account 'ann' may not set registered "
        "model alias 'skills', which takes EDIT of the registered model and READ of its versions; "
        "ask who manages it, or an administrator of the server, for it, or use another account"
    )
    # A wrong password is another thing.
    assert "check MLFLOW_TRACKING_USERNAME" in str(denied(DENIED.replace("403", "401"), *step))
