"""Of a task that was asked before on other items, only the items that are new are asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.scoring import score

from mergeops.evaluate import answers, asking, seat
from mergeops.evaluate.kept import AnswerJournal
from mergeops.evaluate.reuse import joined
from mergeops.recipe.settings import EvaluateSpec
from mergeops.scores import Scores
from mergeops.store.connection import Tracking, connect
from mergeops.tracking import ScoreRecords

Write = Callable[..., Path]
SHA = "ab" * 32


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The items of all requests that a model was sent, each once a request."""
    seen: list[int] = []
    original = answers.ask

    def watched(instances: Any, model: Any) -> Any:
        seen.extend(instance.doc_id for instance in instances)
        return original(instances, model)

    monkeypatch.setattr(answers, "ask", watched)
    return seen


@pytest.fixture
def ask(llama: Path, tmp_path: Path) -> Callable[..., Scores]:
    def run(spec: EvaluateSpec, place: str = "work", part: str = "dev", **options: Any) -> Scores:
        return score(llama, SHA, spec, part, work_dir=tmp_path / place, **options)

    return run


def spec_for(task: Path, **settings: Any) -> EvaluateSpec:
    return EvaluateSpec(
        tasks=(str(task),),
        include_path=str(task.parent),
        **{"batch_size": 8, "device": "cpu", "confirm_fraction": 0.4, **settings},
    )


def likelihoods(work: Path) -> dict[int, list[float]]:
    """Item -> log-likelihoods of its choices, in the largest record there is."""
    records = [json.loads(p.read_text())["record"] for p in work.glob("scores/*/*.json")]
    largest = max(records, key=lambda record: len(record["items"]))
    return {i["doc_id"]: [given[0][0] for given in i["answers"]] for i in largest["items"]}


def test_twice_the_limit_asks_the_new_items_only_and_gives_what_asking_all_gives(
    ask: Callable[..., Scores], write_task: Write, asked: list[int], tmp_path: Path
) -> None:
    spec = spec_for(write_task(), limit=4)
    first = ask(spec)
    old = {item.doc_id for item in first.tasks["sums"].items}
    assert (len(old), len(asked)) == (4, 16)  # four choices an item
    del asked[:]
    ticks: list[int] = []
    grown = ask(replace(spec, limit=8), progress=lambda _task, done, _total: ticks.append(done))
    assert len(asked) == 16
    assert len(set(asked)) == 4 and not set(asked) & old
    assert ticks == [4, 5, 6, 7, 8]
    del asked[:]
    fresh = ask(replace(spec, limit=8), "fresh")
    assert len(asked) == 32
    assert grown == fresh
    told, expected = likelihoods(tmp_path / "work"), likelihoods(tmp_path / "fresh")
    assert list(told) == list(expected)
    for item, values in expected.items():
        assert told[item] == pytest.approx(values, abs=1e-5)


def test_a_smaller_limit_asks_nothing_and_loads_no_model(
    ask: Callable[..., Scores], write_task: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_for(write_task(), limit=8)
    large = ask(spec)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(seat, "load_model", refuse)
    small = ask(replace(spec, limit=4))
    assert set(small.tasks["sums"].items) < set(large.tasks["sums"].items)
    assert small.settings == {**large.settings, "limit": "4"}
    assert ask(replace(spec, limit=4)) == small


def test_another_split_asks_what_changed_parts(
    ask: Callable[..., Scores], write_task: Write, asked: list[int]
) -> None:
    spec = spec_for(write_task())
    old = {item.doc_id for item in ask(spec).tasks["sums"].items}
    del asked[:]
    moved = ask(replace(spec, split_salt="another"))
    new = {item.doc_id for item in moved.tasks["sums"].items}
    assert set(asked) == new - old
    assert new & old and new - old


def test_an_item_that_was_edited_is_asked_again_and_no_other(
    ask: Callable[..., Scores], write_task: Write, asked: list[int]
) -> None:
    items = [
        {"prompt": f"Is {i} odd?", "choices": ["no", "yes"], "answer": i % 2} for i in range(12)
    ]
    spec = spec_for(write_task(items=items), confirm_fraction=0.0)
    ask(spec)
    del asked[:]
    items[5]["answer"] = 0
    write_task(items=items)
    ask(spec)
    assert set(asked) == {5}


@pytest.mark.parametrize("change", [{"num_fewshot": 1}, {"batch_size": 4}, {"dtype": "bfloat16"}])
def test_another_prompt_or_way_of_asking_reuses_nothing(
    ask: Callable[..., Scores], write_task: Write, asked: list[int], change: dict[str, Any]
) -> None:
    spec = spec_for(write_task(), limit=4)
    ask(spec)
    del asked[:]
    other = ask(replace(spec, limit=8, **change))
    assert len(set(asked)) == 8
    assert other == ask(replace(spec, limit=8, **change), "fresh")


def test_examples_that_are_drawn_for_each_item_are_never_mixed_up(
    ask: Callable[..., Scores], write_task: Write, asked: list[int]
) -> None:
    spec = spec_for(write_task(), limit=4, num_fewshot=2)
    first = {item.doc_id: item.prompt_hash for item in ask(spec).tasks["sums"].items}
    del asked[:]
    grown = ask(replace(spec, limit=8))
    assert grown == ask(replace(spec, limit=8), "fresh")
    same = {i.doc_id for i in grown.tasks["sums"].items if first.get(i.doc_id) == i.prompt_hash}
    assert len(asked) == (8 - len(same)) * 4 + 32


def test_a_metric_over_all_items_is_counted_anew(
    ask: Callable[..., Scores], write_task: Write, asked: list[int]
) -> None:
    task = write_task(
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_choice=None,
        doc_to_target="{{prompt}} {{choices[answer]}}",
        metric_list=[{"metric": "word_perplexity", "aggregation": "weighted_perplexity"}],
    )
    spec = spec_for(task, limit=5)
    ask(spec)
    del asked[:]
    grown = ask(replace(spec, limit=10))
    assert len(set(asked)) == 5
    told, fresh = grown.tasks["sums"], ask(replace(spec, limit=10), "fresh").tasks["sums"]
    assert told.value == pytest.approx(fresh.value, rel=1e-6)
    assert [i.value for i in told.items] == pytest.approx([i.value for i in fresh.items], rel=1e-6)


def test_answers_that_are_drawn_are_asked_as_a_whole(
    ask: Callable[..., Scores], write_task: Write, asked: list[int]
) -> None:
    def generates(**options: Any) -> EvaluateSpec:
        task = write_task(
            output_type="generate_until",
            doc_to_choice=None,
            doc_to_target="{{choices[answer]}}",
            generation_kwargs={"until": ["\n"], "max_gen_toks": 4, **options},
            metric_list=[{"metric": "exact_match", "aggregation": "mean"}],
        )
        return spec_for(task, limit=3)

    for options, expected in (
        ({"do_sample": False}, 3),
        ({"do_sample": True, "temperature": 0.7}, 6),
    ):
        spec = generates(**options)
        ask(spec)
        del asked[:]
        grown = ask(replace(spec, limit=6))
        assert len(asked) == expected
        assert grown == ask(replace(spec, limit=6), f"fresh {expected}")


def test_what_another_machine_asked_of_other_items_is_not_asked_again(
    ask: Callable[..., Scores], write_task: Write, asked: list[int], tracking: Tracking
) -> None:
    spec = spec_for(write_task(), limit=4)
    ask(spec, "here", shared=ScoreRecords(tracking))
    del asked[:]
    there = ScoreRecords(connect(tracking.spec))
    grown = ask(replace(spec, limit=8), "there", shared=there)
    assert len(set(asked)) == 4
    assert grown == ask(replace(spec, limit=8), "fresh")
    del asked[:]
    # What was fetched stays: nothing is asked where the store is gone.
    assert ask(spec, "there").tasks["sums"].n == 4
    assert asked == []


def test_a_crash_among_the_new_items_loses_only_the_piece_in_flight(
    ask: Callable[..., Scores],
    write_task: Write,
    asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asking, "PIECE", 2)
    spec = spec_for(write_task(), limit=4)
    ask(spec)

    def crash(_task: str, done: int, _total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(replace(spec, limit=8), progress=crash)
    del asked[:]
    again = ask(replace(spec, limit=8))
    assert len(set(asked)) == 2
    assert again == ask(replace(spec, limit=8), "fresh")


def test_a_journal_of_other_items_counts_as_none(tmp_path: Path) -> None:
    journal = AnswerJournal(tmp_path / "a.journal")
    journal.write([[[[-1.0, True]]]], "these")
    assert journal.read("these") == [[[[-1.0, True]]]]
    assert journal.read() == journal.read("others") == []


def test_settings_say_every_way_in_which_items_were_asked() -> None:
    here, there = {"device": "cpu", "dtype": "float32"}, {"device": "cuda", "dtype": "float32"}
    assert joined([here]) == here
    assert joined([here, there, here]) == {"device": "cpu and cuda", "dtype": "float32"}
