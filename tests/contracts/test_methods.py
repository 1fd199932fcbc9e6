"""Laws that every registered method obeys; a new file in methods/ is held to them at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mergeops import methods
from mergeops.testing import MethodContract

OWN = [n for n in methods.names() if methods.get(n).merge.__module__.startswith("mergeops.")]


@pytest.mark.parametrize("name", OWN)
class TestEveryMethod(MethodContract):
    @pytest.mark.gpu
    def test_cuda_gives_the_same_bits_as_the_cpu(self, name: str) -> None:
        super().test_cuda_gives_the_same_bits_as_the_cpu(name)


class TestOneMethod(MethodContract):
    """As a plug-in's test file says it."""

    method = "linear"


def test_without_pytest_the_suite_says_what_it_needs() -> None:
    code = "import sys; sys.modules['pytest'] = None; import mergeops.testing"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: mergeops.testing needs pytest, which is not installed: "
        "pip install pytest"
    )
