"""The wheel works outside the tree: config files are inside, the command composes a recipe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_composes_a_packaged_recipe_from_anywhere(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip"]
    wheels, site, copy = tmp_path / "wheels", tmp_path / "site", tmp_path / "copy"
    # A copy, since an older build/ beside the sources would end up in the wheel.
    for name in ("mergeops", "conf"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(copy)], check=True
    )
    (wheel,) = wheels.glob("mergeops-*.whl")
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import sys, mergeops; from mergeops.cli.main import main; "
        "print(mergeops.__file__, file=sys.stderr); main()"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "run",
            "recipe=skills_ties",
            "base=b",
            "sources.a.uri=x",
            "--cfg",
            "job",
        ],
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
    )
    assert str(site) in done.stderr
    assert "density: 0.2" in done.stdout
    assert "name: ties" in done.stdout
