"""A seeded slice of ``make fuzz``: some hundred mutations, none of which may be a finding."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.mutations import change

TESTS = Path(__file__).parent.parent


@pytest.mark.sweep
@pytest.mark.slow
def test_no_mutation_of_a_file_ends_otherwise_than_read_or_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", "--count", "400"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "400 mutations, 0 different findings" in done.stdout


def test_a_seed_decides_a_mutation() -> None:
    def mutated(seed: int) -> str:
        return repr(change({"a": [1, {"b": 2}], "c": "d"}, random.Random(seed)))

    assert [mutated(i) for i in range(20)] == [mutated(i) for i in range(20)]
    assert len({mutated(i) for i in range(20)}) > 10
