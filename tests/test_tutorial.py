"""The tutorial's cells run one after the other in an empty directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"

pytestmark = pytest.mark.slow


def test_every_cell_of_the_tutorial_runs(tmp_path: Path) -> None:
    """In a plain interpreter: the value of a cell's last line is for the notebook to show."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(line.lstrip().startswith(("%", "!")) for cell in code for line in cell.split())
    (tmp_path / "cells.py").write_text("\n\n".join(code), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, "cells.py"],
        cwd=tmp_path,
        env={**environment, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "than the best parent" in done.stdout
    assert "tutorial/1" in done.stdout
    assert done.stdout.count("method.scale") == 3
    assert any(word in done.stdout for word in ("refuse", "inconclusive"))


def test_the_tutorial_is_kept_without_outputs() -> None:
    """What a machine printed once is not what the next version prints."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [cell for cell in cells if cell.get("outputs")] == []
