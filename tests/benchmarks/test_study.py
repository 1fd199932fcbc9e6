"""The study of methods: its questions, that it goes on, and what it makes of answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

import benchmarks.study.__main__ as command
from benchmarks.study import cases, questions, training
from benchmarks.study.figures import GAINS, LOSES, NOT_SHOWN, Study, finding, rank_correlation
from benchmarks.study.judge import Case, Place
from benchmarks.study.plan import RUNS, StudyRun
from benchmarks.study.report import document, write_report
from benchmarks.study.results import Result, ResultsFile, answers_of, scores_of
from demo.skills import Item

ITEMS = 40
FAILED = next(run.name for run in RUNS if run.failure)


def answers(right: int, first: int = 0) -> dict[str, str]:
    """``right`` right answers of each task, from the item ``first`` on."""
    text = "".join("1" if first <= i < first + right else "0" for i in range(ITEMS))
    return dict.fromkeys((*questions.SKILLS, questions.TRANSFER), text)


def parents() -> list[Result]:
    """The base, and runs of which the first is the best on dev."""
    best = {run.name: 20 - i for i, run in enumerate(RUNS)}
    rows = [Result(kind="parent", name=n, dev=answers(k), held=answers(k)) for n, k in best.items()]
    return [Result(kind="parent", name="base", dev=answers(2), held=answers(2)), *rows]


def made(kind: str, name: str, pool: str, right: int) -> Result:
    return Result(kind=kind, name=name, pool=pool, held=answers(right), sources=("a", "b"))


def folder_of(tmp_path: Path, name: str, *rows: dict[str, Any]) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


PROBLEM = {
    "question": "Ann has 6 boxes of 4 pens. How many pens?",
    "answer": "She has 6*4 = <<6*4=24>>24 pens.\n#### 24",
}
CHOICES = [
    {"label": label, "text": text} for label, text in zip("AB", ("oven", "lake"), strict=True)
]
QUESTION = {
    "id": "q",
    "answerKey": "B",
    "question": {"stem": "Where do fish live?", "question_concept": "fish", "choices": CHOICES},
}


def test_word_problem_asks_for_a_result_and_for_a_sign(tmp_path: Path) -> None:
    items = questions.read_items([folder_of(tmp_path, "problems", PROBLEM)], "test")
    [calculation], [operation] = items["calculation"], items["operation"]
    assert (calculation.prompt, calculation.right) == ("She has 6*4 =", "24")
    assert len(set(calculation.choices)) == 4
    assert set(calculation.choices) & {"10", "2", "1"}, "one is of another sign"
    assert operation.prompt.endswith("How many pens?\nAnswer: 6")
    assert operation.right == "* 4" and set(operation.choices) == {"+ 4", "- 4", "* 4", "/ 4"}


def test_question_is_asked_for_its_text_its_letter_and_its_concept(tmp_path: Path) -> None:
    items = questions.read_items([folder_of(tmp_path, "choices", QUESTION)], "train")
    assert {skill: own[0].right for skill, own in items.items()} == {
        "commonsense": "lake",
        "letters": "B",
        "relation": "lake",
    }
    assert items["letters"][0].prompt == (
        "Question: Where do fish live?\nA. oven\nB. lake\nAnswer:"
    )


def test_folder_of_another_shape_is_named(tmp_path: Path) -> None:
    other = folder_of(tmp_path, "other", {"text": "no question"})
    with pytest.raises(click.UsageError, match=f"{other} has rows with text; known are"):
        questions.read_items([other], "train")
    with pytest.raises(click.UsageError, match=r"empty has no train\.jsonl"):
        questions.read_items([tmp_path / "empty"], "train")


def test_line_that_a_kill_cut_short_is_done_again(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "results.jsonl")
    kept = made("default", "ties", "all", 5)
    file.add(kept)
    with file.path.open("a") as half:
        half.write('{"kind": "default", "name": "lin')
    assert list(file) == [kept]
    file.add(made("default", "linear", "all", 6))
    assert [result.name for result in file] == ["ties", "linear"]


def test_what_has_a_line_is_not_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def judged(_place: Place, waiting: Sequence[Case], _at_once: int) -> Iterator[Result]:
        for case in waiting:
            asked.append(case.name)
            yield made(case.kind, case.name, case.pool, 3)

    monkeypatch.setattr(command, "judge_cases", judged)
    place, file = Place(tmp_path, tmp_path, tmp_path), ResultsFile(tmp_path / "results.jsonl")
    planned = [Case(kind="default", name=name, sources={}, pool="all") for name in ("a", "b")]
    command._judge_all(place, file, planned[:1], 1)
    command._judge_all(place, file, planned, 1)
    assert asked == ["a", "b"]


def test_two_sizes_are_not_mixed(tmp_path: Path) -> None:
    command._require(tmp_path / "sizes.json", {"steps": 3})
    command._require(tmp_path / "sizes.json", {"steps": 3})
    with pytest.raises(click.UsageError, match="was begun with {'steps': 3}"):
        command._require(tmp_path / "sizes.json", {"steps": 4})


def test_run_is_there_whole_with_its_checkpoints(
    tmp_path: Path, tiny_llama: Callable[..., Path]
) -> None:
    run = StudyRun("short", ("sums",), 1, checkpoints=2)
    items = {"sums": [Item("sums", f"{i}", "a b", ("c", "d"), i % 2) for i in range(8)]}
    (tmp_path / ".short").mkdir()
    (tmp_path / ".short" / "left-by-a-kill").touch()
    facts = training.train_one(run, tiny_llama(tied=True), items, tmp_path, steps=4, batch=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["short"]
    names = [path.name for path in training.checkpoints_of(tmp_path, run)]
    assert names == ["checkpoint-2", "checkpoint-4"]
    assert facts["steps"] == len(facts["losses"]) == 4 and facts["losses"][-1] < facts["losses"][0]


def test_answers_come_back_as_scores() -> None:
    own = answers(7)
    scores = scores_of(own)
    assert answers_of(scores) == own
    assert scores.tasks["operation"].value == 7 / ITEMS


def test_method_gains_where_its_interval_is_above_zero_and_else_is_not_shown() -> None:
    best = parents()[1]
    study = Study(
        [
            *parents(),
            made("default", "linear", "all", 21),
            made("default", "ties", "all", 35),
            made("default", "sce", "all", 2),
        ]
    )
    assert study.best_run == best
    found = {row.result.name: finding(row.against["best run"]) for row in study.methods("all")}
    assert found == {"ties": GAINS, "linear": NOT_SHOWN, "sce": LOSES}
    rows = {row.result.name: row for row in study.methods("all")}
    assert rows["ties"].against["best run"].difference == pytest.approx(15 / ITEMS)
    assert rows["ties"].against["uniform soup"].difference == pytest.approx(14 / ITEMS)
    assert rows["linear"].against["uniform soup"].difference == 0


def test_run_that_the_soup_is_better_with_gives_something() -> None:
    soup = made("default", "linear", "all", 20)
    without = [made("without", "mixed-1", "all", 5), made("without", FAILED, "all", 35)]
    gains = Study([*parents(), soup, *without]).contributions("all")
    assert gains["mixed-1"].difference == pytest.approx(15 / ITEMS)
    assert finding(gains["mixed-1"]) == GAINS and finding(gains[FAILED]) == LOSES
    assert gains["mixed-1"].low < 15 / ITEMS < gains["mixed-1"].high


def test_window_is_held_to_the_last_checkpoint_of_its_own_run() -> None:
    windows = [
        made("window", "last 2", RUNS[1].name, 30),
        made("window", "last 2", RUNS[0].name, 30),
    ]
    found = Study([*parents(), *windows]).windows()
    assert [each.difference for _, each in found] == pytest.approx([11 / ITEMS, 10 / ITEMS])


def test_diagnostic_that_orders_runs_as_their_gains_do_is_known_by_its_correlation() -> None:
    value, low, high = rank_correlation([1, 2, 3, 4, 5, 6], [2, 3, 5, 8, 9, 10], 0.95)
    assert value == pytest.approx(1.0) and low == pytest.approx(1.0) and high == pytest.approx(1.0)
    value, low, high = rank_correlation([1, 2, 3, 4, 5, 6], [3, 1, 2, 6, 1, 4], 0.95)
    assert low < 0 < value < high


def test_best_of_each_group_is_chosen_on_dev() -> None:
    names = [run.name for run in cases.best_of_groups(cases.by_dev(parents()))]
    first = {run.group: run.name for run in reversed(RUNS)}
    assert names == [first[group] for group in ("mixed", *questions.SKILLS)]


def test_run_that_dev_shows_to_be_worse_than_the_base_is_not_sound() -> None:
    base, first, *others = parents()
    ruined = replace(first, dev=dict.fromkeys(questions.SKILLS, "0" * ITEMS))
    strong = replace(base, dev=answers(12))
    names = [run.name for run in cases.not_worse([strong, ruined, *others])]
    assert first.name not in names and others[0].name in names


def test_report_is_made_of_what_is_there(tmp_path: Path) -> None:
    sizes = {"steps": 4, "batch": 2, "items": 2 * ITEMS}
    with pytest.raises(ValueError, match="have no base, calculation-1"):
        write_report([], sizes, tmp_path)
    failed = replace(made("default", "wudi", "few", 1), held={}, error="MergeError: too large")
    soup, ties = made("default", "linear", "few", 21), made("default", "ties", "few", 38)
    write_report([*parents(), soup, ties, failed], sizes, tmp_path)
    text = (tmp_path / "study.md").read_text()
    first = " ".join(text.split("## What was run")[0].split())
    few = "Of the best run of each group, gains: `ties` "
    assert f"{few}+0.450 [" in first and "]; neither is shown: `linear` +0.025 [" in first
    assert f"{few}+0.425 [" in first.split("over the uniform soup?**")[1]
    assert "**What do failed runs give?** Not run yet." in first
    assert "| `linear` | 0.525 |" in text and "| the soup itself |" in text
    assert "| default | wudi | few | MergeError: too large |" in text
    assert "- 32 of 32 soups that leave a run out, at most\n" in text
    assert "### Windows" not in text
    assert (tmp_path / "study.png").stat().st_size < 150_000


def test_page_is_what_the_report_makes_of_what_was_measured() -> None:
    root = Path(__file__).parents[2]
    measured = root / "benchmarks" / "study" / "measured"
    sizes = json.loads((measured / "sizes.json").read_text(encoding="utf-8"))
    made_now = document(Study(ResultsFile(measured / "results.jsonl")), sizes)
    shown = (root / "docs" / "study.md").read_text(encoding="utf-8")
    # `python -m benchmarks.study report benchmarks/study/measured --out docs` writes it anew. What
    # is left to run changes with every method that is added.
    for text in (made_now, shown):
        assert "## What was not run" in text
    assert _without_what_is_left(made_now) == _without_what_is_left(shown)


def _without_what_is_left(text: str) -> str:
    before, _, rest = text.partition("## What was not run")
    return before + rest.partition("## How to read it")[2]
