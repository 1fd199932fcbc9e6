"""Processes of this machine."""

from __future__ import annotations

import pytest

from mergeops.testing import ExecutorContract


@pytest.mark.slow
class TestLocal(ExecutorContract):
    executor = "local"
