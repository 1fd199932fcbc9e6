"""The lineage picture: whole, escaped, and readable however long the names are."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from mergeops.evaluate.intervals import Estimate
from mergeops.report.lineage import HEIGHT, WIDTH, Node, lineage_svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in drawn(svg).iter(f"{SVG}text")]


def boxes(svg: str) -> list[tuple[float, float]]:
    return [
        (float(r.attrib["x"]), float(r.attrib["y"]))
        for r in drawn(svg).iter(f"{SVG}rect")
        if r.attrib.get("width") == str(WIDTH)
    ]


def sources(n: int) -> list[Node]:
    return [Node("source", f"source {i}", edge=f"weight 0.{i}") for i in range(n)]


def test_it_says_who_came_from_whom_with_status_score_and_weight() -> None:
    svg = lineage_svg(
        Node("base", "SmolLM2", "hf://org/SmolLM2", score=Estimate(0.345, (0.3, 0.4))),
        [Node("source", "math", "run 4f2c", Estimate(0.448, None), "FAILED", "weight 0.5")],
        Node("merge", "ties", "run 8ab2", Estimate(0.67, (0.6, 0.74))),
        Node("version", "skills version 3", status="champion"),
    )
    for text in (
        "SmolLM2",
        "0.345",
        "[0.300, 0.400]",
        "0.448",
        "[0.600, 0.740]",
        "math",
        "FAILED",
        "weight 0.5",
        "ties",
        "champion",
    ):
        assert text in texts(svg)


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("with_version", [True, False])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_every_box_is_inside_none_overlap_and_columns_go_left_to_right(
    with_base: bool, with_version: bool, n: int
) -> None:
    svg = lineage_svg(
        Node("base", "b") if with_base else None,
        sources(n),
        Node("merge", "m"),
        Node("version", "v") if with_version else None,
    )
    places = boxes(svg)
    assert len(places) == n + 1 + with_base + with_version
    width, height = float(drawn(svg).attrib["width"]), float(drawn(svg).attrib["height"])
    assert all(x > 0 and x + WIDTH < width for x, _ in places)
    assert all(y > 0 and y + HEIGHT < height for _, y in places)
    for i, (x, y) in enumerate(places):
        for other_x, other_y in places[i + 1 :]:
            assert x != other_x or abs(y - other_y) > HEIGHT
    columns = [x for x, _ in places]
    assert columns == sorted(columns)


def test_each_source_has_a_line_to_the_merge_and_one_from_the_base() -> None:
    with_base = lineage_svg(Node("base", "b"), sources(3), Node("merge", "m"))
    assert with_base.count("marker-end") == 6
    assert with_base.count("stroke-dasharray") == 3
    assert lineage_svg(None, sources(3), Node("merge", "m")).count("marker-end") == 3


def test_markup_in_names_is_text() -> None:
    name = "<script>alert(1)</script>&\"'"
    svg = lineage_svg(None, [Node("source", name, name, edge=name)], Node("merge", "m"))
    assert "<script>" not in svg
    title = next(drawn(svg).iter(f"{SVG}title")).text or ""
    assert name in title


def test_long_names_are_cut_and_whole_in_the_tooltip() -> None:
    long = "n" * 200
    svg = lineage_svg(
        None, [Node("source", long, score=Estimate(0.123, (0.1, 0.2)))], Node("merge", "m")
    )
    assert max(len(text) for text in texts(svg)) < 40
    assert long in (next(drawn(svg).iter(f"{SVG}title")).text or "")


def test_nothing_is_loaded_from_elsewhere() -> None:
    svg = lineage_svg(None, sources(2), Node("merge", "m"))
    assert re.findall(r"https?://[^'\" ]+", svg) == ["http://www.w3.org/2000/svg"]
    assert "href" not in svg
