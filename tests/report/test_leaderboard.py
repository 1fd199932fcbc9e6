"""The leaderboard and its picture."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from mergeops.errors import EvaluationError
from mergeops.report import board_tables
from mergeops.report.leaderboard import Entry, Leaderboard, make_leaderboard
from mergeops.report.plots import scores_figure
from mergeops.scores import UNITS, GroupRule, ItemResult, Scores, TaskScore
from mergeops.scores.proportions import tango_interval


def scores(part: str = "dev", higher: bool = True, **tasks: list[float]) -> Scores:
    made = {}
    for task, values in tasks.items():
        items = tuple(ItemResult(i, f"d{i}", f"p{i}", "t", float(v)) for i, v in enumerate(values))
        mean = sum(values) / len(values)
        made[task] = TaskScore(task, "acc", mean, 0.1, items, "1", "x", higher)
    return Scores("00", part, made, {})


def entry(name: str, kind: str, *right: int, n: int = 10) -> Entry:
    """A model with so many of ``n`` items right on tasks a, b, ..."""
    tasks = {task: [1.0] * k + [0.0] * (n - k) for task, k in zip("abcdef", right, strict=False)}
    return Entry(name, kind, scores(**tasks))


BASE = entry("base", "base", 2, 3)
MATH, CODE = entry("math", "source", 8, 3), entry("code", "source", 3, 7)
SOUP, TIES = entry("soup", "merge", 7, 7), entry("ties", "merge", 2, 2)
ALL = [BASE, MATH, CODE, SOUP, TIES]


def shown(board: Leaderboard, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(board_tables.board_table(board, width))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("place", range(3))
def test_a_score_that_is_no_number_is_ranked_last_wherever_it_stood(
    higher: bool, place: int
) -> None:
    values = {"one": 1.0, "two": 2.0}
    entries = [Entry(n, "source", scores(higher=higher, a=[v, v])) for n, v in values.items()]
    entries.insert(place, Entry("broken", "source", scores(higher=higher, a=[math.nan, 1.0])))
    best, second, last = make_leaderboard(entries).rows
    assert [best.name, second.name] == (["two", "one"] if higher else ["one", "two"])
    assert last.name == "broken"


def test_models_are_ranked_by_their_score_over_all_items() -> None:
    board = make_leaderboard(ALL)
    assert [(row.rank, row.name, row.kind, row.pooled) for row in board.rows] == [
        (1, "soup", "merge", 0.7),
        (2, "math", "source", 0.55),
        (3, "code", "source", 0.5),
        (4, "base", "base", 0.25),
        (5, "ties", "merge", 0.2),
    ]
    assert board.rows[0].name == "soup"
    assert board.rows[0].pooled == SOUP.scores.pooled
    assert {t: (found.value, found.stderr) for t, found in board.rows[0].tasks.items()} == {
        "a": (0.7, 0.1),
        "b": (0.7, 0.1),
    }


def test_the_best_source_is_the_reference() -> None:
    board = make_leaderboard(ALL)
    assert board.reference == "math"
    assert board.rows[1].difference is None
    found = board.rows[0].difference
    assert found is not None
    # soup against math: one item lost on a, four won on b
    assert (found.wins, found.losses, found.n) == (4, 1, 20)
    assert found.difference == pytest.approx(0.15)
    assert (found.low, found.high) == tango_interval(4, 1, 20, 0.95)


def test_without_sources_the_base_is_the_reference_and_without_both_nothing_is() -> None:
    assert make_leaderboard([BASE, SOUP]).reference == "base"
    alone = make_leaderboard([SOUP, TIES])
    assert alone.reference is None
    assert all(row.difference is None for row in alone.rows)
    assert "Differences" not in board_tables.board_markdown(alone)


def test_the_reference_can_be_named() -> None:
    assert make_leaderboard(ALL, reference="code").reference == "code"
    with pytest.raises(EvaluationError, match="no model is called 'x'; there are: soup, math,"):
        make_leaderboard(ALL, reference="x")


def test_the_standard_error_over_all_items_takes_the_tasks_as_given() -> None:
    # Shares p and q of 10 items each: variance of the sum of 20 is 10 p(1-p) 10/9 + the same of q.
    expected = math.sqrt(10 * (0.8 * 0.2 + 0.3 * 0.7) * 10 / 9) / 20
    assert make_leaderboard([MATH]).rows[0].stderr == pytest.approx(expected)


def test_the_interval_of_a_share_is_wilsons() -> None:
    row = make_leaderboard([SOUP]).rows[0]
    z = 1.959963984540054
    # Wilson's bounds solve (p - q)^2 = z^2 q (1 - q) / n.
    for bound in (row.low, row.high):
        assert (0.7 - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / 20)
    everything = make_leaderboard([entry("x", "merge", 10, 10)]).rows[0]
    assert (everything.low < 1.0, everything.high) == (True, 1.0)


def test_each_task_has_its_own_interval() -> None:
    found = make_leaderboard([MATH]).rows[0].tasks
    z = 1.959963984540054
    for share, task in ((0.8, "a"), (0.3, "b")):
        for bound in found[task].interval or ():
            assert (share - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / 10)
    assert str(found["b"]) == "0.300 [0.108, 0.603]"


def test_a_metric_that_is_no_mean_has_the_interval_of_its_standard_error_or_none() -> None:
    made = scores(a=[2.0, 4.0], b=[2.0, 4.0])
    odd = {
        "a": dataclasses.replace(made.tasks["a"], value=10.0, stderr=0.5),
        "b": dataclasses.replace(made.tasks["b"], value=10.0, stderr=None),
    }
    row = make_leaderboard([Entry("x", "merge", dataclasses.replace(made, tasks=odd))]).rows[0]
    assert str(row.tasks["a"]) == "10.000 [9.020, 10.980]"
    assert str(row.tasks["b"]) == "10.000"


def test_items_of_one_cluster_widen_the_interval() -> None:
    free = scores(a=[1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    items = tuple(
        dataclasses.replace(item, cluster=f"c{i // 2}")
        for i, item in enumerate(free.tasks["a"].items)
    )
    tied = {"a": dataclasses.replace(free.tasks["a"], items=items)}
    alone = make_leaderboard([Entry("x", "merge", free)]).rows[0]
    row = make_leaderboard([Entry("x", "merge", dataclasses.replace(free, tasks=tied))]).rows[0]
    assert row.high - row.low > alone.high - alone.low
    assert row.tasks["a"].interval == (row.low, row.high)


def test_other_numbers_have_students_interval_and_one_item_has_none() -> None:
    row = make_leaderboard([Entry("x", "merge", scores(a=[0.5, 0.7, 0.9]))]).rows[0]
    assert row.stderr == pytest.approx(0.2 / math.sqrt(3))
    # Student's quantile for two degrees of freedom, from a table.
    assert row.high - row.pooled == pytest.approx(4.302653 * 0.2 / math.sqrt(3), rel=1e-6)
    single = make_leaderboard([Entry("x", "merge", scores(a=[0.5]))])
    assert single.rows[0].stderr is None
    assert single.to_dict()["rows"][0]["low"] is None
    assert single.to_dict()["rows"][0]["tasks"]["a"]["low"] is None
    assert "0.500 [" not in board_tables.board_markdown(single)


def test_where_lower_is_better_the_lowest_comes_first() -> None:
    good = Entry("good", "merge", scores(higher=False, a=[0.5, 0.6]))
    bad = Entry("bad", "source", scores(higher=False, a=[1.5, 1.6]))
    board = make_leaderboard([bad, good])
    assert board.rows[0].name == "good"
    assert board.rows[0].difference is not None
    assert board.rows[0].difference.difference == pytest.approx(1.0)


def test_only_tasks_that_all_were_scored_on_count_and_the_others_are_named() -> None:
    board = make_leaderboard([entry("x", "source", 5, 5, 5), SOUP])
    assert board.tasks == ("a", "b")
    assert board.left_out == ("c",)
    assert board.rows[0].n == 20
    assert "Not every model was scored on: c." in board_tables.board_markdown(board)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "no scored models"),
        ([SOUP, SOUP], "two models of the leaderboard are called 'soup'"),
        (
            [Entry("x", "parent", SOUP.scores)],
            "x is of kind 'parent'; allowed: base, source, merge",
        ),
        (
            [SOUP, Entry("x", "merge", scores("confirm", a=[1.0], b=[1.0]))],
            "soup has scores of the dev part and x of the confirm part",
        ),
        (
            [Entry("x", "merge", scores(a=[1.0])), Entry("y", "merge", scores(b=[1.0]))],
            "no task was scored for every model; scored: x: a; y: b",
        ),
    ],
)
def test_what_cannot_be_ranked_is_refused(entries: list[Entry], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        make_leaderboard(entries)


def test_tasks_of_opposite_direction_are_refused() -> None:
    mixed = Scores("0", "dev", {**scores(a=[1.0]).tasks, **scores(higher=False, b=[1.0]).tasks}, {})
    with pytest.raises(EvaluationError, match="do not point the same way"):
        make_leaderboard([Entry("x", "merge", mixed)])


def test_the_table_tells_merges_from_parents() -> None:
    lines = shown(make_leaderboard(ALL)).splitlines()
    low, high = tango_interval(4, 1, 20, 0.95)
    assert lines[3].split()[:3] == ["1", "soup", "merge"]
    assert "0.700 [0.481, 0.855]" in lines[3]
    assert f"+0.150 [{low:+.3f}, {high:+.3f}]" in lines[3]
    assert lines[4].split()[:3] == ["2", "math", "source"]
    assert "reference" in lines[4]
    assert lines[6].split()[:3] == ["4", "base", "base"]


def test_on_a_narrow_terminal_the_tasks_follow_and_no_number_is_cut() -> None:
    tasks = [entry(f"model-{i}", "merge", i, i, i, i, i, i) for i in range(3)]
    text = shown(make_leaderboard([entry("math", "source", 9, 1, 1, 1, 1, 1), *tasks]), width=80)
    assert max(map(len, text.splitlines())) <= 80
    # On the summary, and once for every two of the six tasks.
    assert text.count("model-2") == 4
    assert text.count("0.200 [0.057, 0.510]") == 6


def wiki(name: str, nats: list[float], words: list[float]) -> Entry:
    items = tuple(
        ItemResult(i, f"d{i}", f"p{i}", "t", n, "", w)
        for i, (n, w) in enumerate(zip(nats, words, strict=True))
    )
    value = math.exp(sum(nats) / sum(words))
    facts = {"higher_is_better": False, "kind": UNITS, "by_log": True}
    task = TaskScore("wiki", "word_perplexity", value, None, items, "1", "x", **facts)
    return Entry(name, "merge", Scores("00", "dev", {"wiki": task}, {}))


def test_models_are_ranked_by_lm_evals_perplexity_and_not_by_that_of_the_average_text() -> None:
    board = make_leaderboard(
        [wiki("short texts", [110.0, 3.0], [100, 3]), wiki("long texts", [100.0, 9.0], [100, 3])]
    )
    assert [row.name for row in board.rows] == ["long texts", "short texts"]
    assert board.rows[0].pooled == pytest.approx(math.exp(109 / 103))
    assert "word_perplexity over all items, compared by nats a unit." in (
        board_tables.board_markdown(board)
    )


def test_a_group_has_a_column_with_its_own_number_and_ranks_by_it() -> None:
    rule = {"both": GroupRule(("a", "b"), by_size=False)}

    def of(name: str, a: list[float], b: list[float]) -> Entry:
        return Entry(name, "merge", dataclasses.replace(scores(a=a, b=b), groups=rule))

    board = make_leaderboard(
        [of("by items", [0.0, 0.0], [1.0] * 8), of("by tasks", [1.0, 1.0], [1.0] * 5 + [0.0] * 3)]
    )
    assert [row.name for row in board.rows] == ["by tasks", "by items"]
    lines = board_tables.board_markdown(board).splitlines()
    assert lines[0].split(" | ")[5] == "both"
    assert "0.812" in lines[2].split(" | ")[5]
    assert "All tasks: lm-eval's number of both." in lines[-1]
    assert board.to_dict()["rows"][0]["groups"]["both"]["value"] == pytest.approx(0.8125)


def test_names_are_text_and_not_markup() -> None:
    odd = entry("ties [bold]|x[/]", "merge", 5, 5)
    board = make_leaderboard([odd])
    assert "ties [bold]|x[/]" in shown(board)
    assert "ties [bold]\\|x[/]" in board_tables.board_markdown(board)


def test_markdown_has_a_row_a_model_and_says_how_to_read_it() -> None:
    lines = board_tables.board_markdown(make_leaderboard(ALL)).splitlines()
    assert lines[0] == "| # | model | kind | all tasks | difference | a | b |"
    assert lines[1] == "| ---: | --- | --- | ---: | ---: | ---: | ---: |"
    assert lines[3] == (
        "| 2 | math | source | 0.550 [0.342, 0.742] | reference | 0.800 [0.490, 0.943] "
        "| 0.300 [0.108, 0.603] |"
    )
    assert "Scores are shown with 95 % intervals." in lines[-1]
    assert "Differences to math are paired by item" in lines[-1]


def test_the_dict_is_json_with_all_numbers() -> None:
    plain = json.loads(json.dumps(make_leaderboard(ALL).to_dict(), allow_nan=False))
    assert (plain["part"], plain["reference"], plain["tasks"]) == ("dev", "math", ["a", "b"])
    first = plain["rows"][0]
    assert (first["name"], first["kind"], first["n"], first["pooled"]) == ("soup", "merge", 20, 0.7)
    assert first["tasks"]["a"] == {
        "value": 0.7,
        "stderr": 0.1,
        "low": pytest.approx(0.39677, abs=1e-5),
        "high": pytest.approx(0.89221, abs=1e-5),
    }
    assert first["difference"]["wins"] == 4
    assert first["difference"]["p_value"] == pytest.approx(6 / 32)
    assert plain["rows"][1]["difference"] is None


# --- the picture


def test_the_figure_shows_each_model_with_its_interval(tmp_path: Path) -> None:
    board = make_leaderboard(ALL)
    figure = scores_figure(board)
    left, right = figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == [row.name for row in board.rows]
    dots = [line for line in left.lines if line.get_marker() in ("o", "s", "D")]
    assert [float(line.get_xdata()[0]) for line in dots] == [row.pooled for row in board.rows]
    assert len({line.get_color() for line in dots}) == 3
    assert "difference to math" in right.get_xlabel()
    figure.savefig(tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_reference_there_is_one_panel() -> None:
    assert len(scores_figure(make_leaderboard([SOUP, TIES])).axes) == 1
    assert len(scores_figure(make_leaderboard([MATH])).axes) == 1


def test_odd_names_and_single_items_can_be_drawn(tmp_path: Path) -> None:
    odd = [
        Entry("cost $x_1$ " + "y" * 60, "merge", scores(a=[0.5])),
        Entry("math", "source", scores(a=[0.7])),
    ]
    figure = scores_figure(make_leaderboard(odd))
    figure.savefig(tmp_path / "scores.png")
    assert figure.axes[0].get_yticklabels()[1].get_text().endswith("…")
