"""The comparison as one HTML file: whole, offline, and safe whatever runs are called."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.tracking_case import make_scores

from mergeops.errors import ConfigError
from mergeops.report.leaderboard import Compared, Entry, LeftOut, Origin, make_leaderboard
from mergeops.report.web_page import MARK, WIDTH, check_page_target, page, write_page

EVIL = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>"


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text of every table row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def entry(name: str, kind: str, right: int, experiment: str = "merges") -> Entry:
    origin = Origin(experiment, f"{name} run", "m-1", f"{name} weights", f"http://h/#/{name}")
    scores = make_scores(name, right={"arithmetic": right}, n=40)
    return Entry(name, kind, scores, origin)


def compared(*entries: Entry, experiments: tuple[str, ...] = ("merges",)) -> Compared:
    return Compared(
        experiments, make_leaderboard(entries), (LeftOut("old", "merges", "other <b>"),)
    )


def usual() -> Compared:
    return compared(entry("ties", "merge", 38), entry("math", "source", 20), entry("b", "base", 5))


def test_every_row_has_a_cell_for_every_heading_and_the_numbers_of_the_leaderboard() -> None:
    head, *rows = Elements(page(usual())).rows
    assert head[:5] == ["#", "model", "kind", "all tasks", "difference"]
    assert head[5:] == ["p", "wins : losses", "arithmetic"]
    assert [row[:3] for row in rows] == [
        ["1", "ties", "merge"],
        ["2", "math", "source"],
        ["3", "b", "base"],
    ]
    assert all(len(row) == len(head) for row in rows)
    assert rows[0][3] == rows[0][7] == "0.950 [0.835, 0.986]"
    assert rows[0][4].startswith("+0.450 [")
    assert rows[0][6] == "18 : 0"
    assert rows[1][4] == "reference"


def test_nothing_is_loaded_and_links_lead_to_the_runs() -> None:
    elements = Elements(page(usual()))
    assert [a["href"] for a in elements.attributes("a")] == [
        "http://h/#/ties",
        "http://h/#/math",
        "http://h/#/b",
    ]
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in elements.found}
    assert all("src" not in attributes for _, attributes in elements.found)


def test_markup_in_names_is_text() -> None:
    board = compared(entry(EVIL, "merge", 3), entry("math", "source", 2), experiments=(EVIL, "b"))
    elements = Elements(page(board))
    assert [tag for tag, _ in elements.found].count("script") == 1
    assert "img" not in {tag for tag, _ in elements.found}
    assert not [name for _, attributes in elements.found for name in attributes if name[:2] == "on"]
    assert elements.rows[1][1] == EVIL


def test_the_browser_may_run_this_script_and_no_other() -> None:
    text = page(usual())
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policy = Elements(text).attributes("meta")[1]["content"]
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_one_diverged_run_does_not_squeeze_all_other_intervals() -> None:
    good = [entry(f"m{i}", "source", 30 + i) for i in range(6)]
    elements = Elements(page(compared(*good, entry("diverged", "source", 0))))
    spans = [a for a in elements.attributes("line") if a.get("class") == "span"]
    widths = [float(a["x2"] or 0) - float(a["x1"] or 0) for a in spans]
    assert max(widths) > WIDTH / 2
    assert len(elements.attributes("path")) == 2
    assert all(math.isfinite(width) for width in widths)


def test_an_experiment_can_be_chosen_only_where_there_are_several() -> None:
    one = compared(entry("a", "merge", 3))
    several = compared(entry("a", "merge", 3), experiments=("x", "y"))
    assert not Elements(page(one)).attributes("select")
    assert Elements(page(several)).rows[0][2] == "experiment"


def test_models_that_are_left_out_are_named_with_the_reason() -> None:
    assert "<li>old (merges): other &lt;b&gt;</li>" in page(usual())


def test_a_page_is_overwritten_by_a_page_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "compare.html"
    write_page(usual(), path)
    check_page_target(path)
    write_page(usual(), path)
    assert path.read_text().startswith(MARK)
    assert [p.name for p in tmp_path.iterdir()] == ["compare.html"]
    other = tmp_path / "thesis.html"
    other.write_text("<!doctype html>\n<p>mine")
    for target, message in (
        (other, "which is no page of mergeops compare and would be overwritten"),
        (tmp_path, "a directory; name a file"),
        (tmp_path / "none" / "x.html", "there is no directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_page_target(target)
    assert other.read_text() == "<!doctype html>\n<p>mine"
