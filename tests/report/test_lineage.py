"""The lineage picture: whole, escaped, and readable however long the names are."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from mergeops.report.lineage_picture import (
    HEIGHT,
    WIDTH,
    Line,
    Node,
    columns,
    draw_network,
    lineage_svg,
)
from mergeops.scores.intervals import Estimate

SVG = "{http://www.w3.org/2000/svg}"


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in drawn(svg).iter(f"{SVG}text")]


def boxes(svg: str) -> list[tuple[float, float]]:
    """The upper left corners."""
    corners = []
    for group in drawn(svg).iter(f"{SVG}g"):
        # Of each box first its outline, then its stripe.
        path = group.find(f"{SVG}path")
        if group.get("class") == "box" and path is not None and "stroke" in path.attrib["style"]:
            numbers = [float(n) for n in re.findall(r"[\d.]+", path.attrib["d"])]
            assert max(numbers[::2]) - min(numbers[::2]) == WIDTH
            assert max(numbers[1::2]) - min(numbers[1::2]) == HEIGHT
            corners.append((min(numbers[::2]), min(numbers[1::2])))
    return sorted(corners)


def tips(svg: str) -> int:
    return sum(group.get("class") == "tip" for group in drawn(svg).iter(f"{SVG}g"))


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
    assert len({x for x, _ in places}) == 2 + with_base + with_version
    at = {t.text: float(t.attrib["x"]) for t in drawn(svg).iter(f"{SVG}text")}
    columns = [at[name] for name in ("b", "source 0", "m", "v") if name in at]
    assert columns == sorted(columns)


def test_each_source_has_a_line_to_the_merge_and_one_from_the_base() -> None:
    with_base = lineage_svg(Node("base", "b"), sources(3), Node("merge", "m"))
    assert tips(with_base) == 6
    assert with_base.count("stroke-dasharray") == 3
    assert tips(lineage_svg(None, sources(3), Node("merge", "m"))) == 3


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


def test_characters_that_xml_forbids_are_left_out_and_dollars_are_no_formula() -> None:
    merge = Node("merge", "a\x1b[0m\nb \ud800 $x^2$", status="x" * 500)
    svg = lineage_svg(None, sources(1), merge)
    assert "a[0m b  $x^2$" in texts(svg)


def test_the_same_lineage_gives_the_same_bytes() -> None:
    nodes = [Node("source", "math"), Node("merge", "ties", score=Estimate(0.5, None))]
    lines: list[Line] = [(0, 1, "weight 0.5")]
    assert draw_network(nodes, lines, "svg") == draw_network(nodes, lines, "svg")
    assert draw_network(nodes, lines, "png").startswith(b"\x89PNG")


def test_ancestors_stand_left_of_all_their_descendants_and_a_loop_is_cut() -> None:
    assert columns(4, [(0, 1, ""), (1, 2, ""), (0, 2, "")]) == [[0], [1], [2, 3]]
    assert columns(3, [(0, 1, ""), (1, 2, ""), (2, 0, "")]) == [[0], [1], [2]]
    assert columns(1, [(0, 0, "")]) == [[0]]
