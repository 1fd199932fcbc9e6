"""What the scoring benchmark's page says is computed from what was measured."""

from __future__ import annotations

from benchmarks.scoring import Measured, page


def test_the_page_says_only_what_was_measured() -> None:
    story = Measured(
        task="story",
        items=2,
        requests=8,
        tokens=600,
        rows=200,
        check_s=1.5,
        theirs=[(10.0, 20.0), (12.0, 20.0), (9.0, 18.0)],
        ours=[(2.5, 4.0), (3.0, 4.0), (1.5, 2.0)],
        difference=2e-5,
        flips=0,
    )
    text = page([story], threads=2, pairs=3)
    cells = [cell.strip() for cell in text.split("| story |")[1].split("\n")[0].split("|")]
    assert cells[:4] == ["2, 8", "600 / 200", "4.0 [4.0, 6.0]", "5.0 [5.0, 9.0]"]
    # 10 / (2.5 + 1.5), 12 / (3 + 1.5), 9 / (1.5 + 1.5)
    assert cells[4:9] == ["10.0", "2.5", "1.5", "2.7 [2.5, 3.0]", "2e-05"]
    assert "over the ratio of tokens: 1.33 for `story`" in text
    assert "letters" not in text
