"""What a sharded training left, looked at."""

from __future__ import annotations

from pathlib import Path

from mergeops.recover import leftover


def problem(directory: Path) -> str:
    """Why what lies there is no whole checkpoint, in one line."""
    found = leftover(directory)
    assert found is not None
    assert found.shards is None
    assert found.problem is not None
    assert "\n" not in found.problem
    return found.problem
