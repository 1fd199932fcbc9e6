"""How fast this machine was, as an estimate of what comes."""

from __future__ import annotations

from pathlib import Path

from mergeops.engine import MERGING, SCORING, note_pace, read_pace


def test_twice_the_work_takes_twice_the_time(tmp_path: Path) -> None:
    assert read_pace(tmp_path, MERGING) is None
    note_pace(tmp_path, MERGING, 100, 5.0)
    assert read_pace(tmp_path, MERGING).time_for(200) == 10.0
    assert read_pace(tmp_path, SCORING) is None


def test_older_work_counts_half_as_much_each_time(tmp_path: Path) -> None:
    note_pace(tmp_path, SCORING, 100, 10.0)
    note_pace(tmp_path, MERGING, 1, 1.0)
    note_pace(tmp_path, SCORING, 50, 1.0)
    # 100 / 2 + 50 in 10 / 2 + 1 seconds.
    assert read_pace(tmp_path, SCORING).time_for(100) == 6.0
    assert read_pace(tmp_path, MERGING).time_for(1) == 1.0


def test_an_estimate_is_worth_no_error(tmp_path: Path) -> None:
    (tmp_path / "pace.json").write_text("{broken")
    assert read_pace(tmp_path, MERGING) is None
    note_pace(tmp_path / "gone" / "further", MERGING, 1, 1.0)
    note_pace(tmp_path, MERGING, 0, 0.0)
    note_pace(tmp_path, MERGING, 2, 4.0)
    assert read_pace(tmp_path, MERGING).time_for(1) == 2.0
