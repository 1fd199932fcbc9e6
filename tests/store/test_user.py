"""Every change has a name to be recorded under."""

from __future__ import annotations

import os

import pytest

from mergeops.store import connection
from mergeops.store.connection import current_user


def test_a_user_whom_no_passwd_file_names_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.setattr(connection.getpass, "getuser", nobody)
    assert current_user() == f"uid {os.getuid()}"


def test_the_user_of_mlflow_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "x")
    assert current_user() == "ann"
