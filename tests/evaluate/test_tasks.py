"""Tasks are found and checked before any model is loaded."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergeops.errors import EvaluationError
from mergeops.evaluate import catalogue, silence
from mergeops.evaluate.tasks import load_tasks
from mergeops.recipe.settings import EvaluateSpec

Write = Callable[..., Path]


def spec_for(folder: Path, *tasks: str, **settings: Any) -> EvaluateSpec:
    return EvaluateSpec(tasks=tasks, include_path=str(folder), **settings)


@pytest.fixture
def without_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own 14,000 task files take 10 s to parse."""
    monkeypatch.setattr(catalogue.Catalogue, "_with_shipped", property(lambda self: self._own))


def test_a_name_from_the_include_path_is_loaded(write_task: Write) -> None:
    path = write_task()
    loaded = load_tasks(spec_for(path.parent, "sums")).tasks["sums"]
    assert (loaded.metric, loaded.version, loaded.num_fewshot) == ("acc", "2.0", 0)
    assert len(loaded.docs) == 24
    assert sorted([*loaded.ids["dev"], *loaded.ids["confirm"]]) == list(range(24))
    assert loaded.higher_is_better


def test_a_task_may_be_given_as_a_path(write_task: Write) -> None:
    path = write_task()
    assert list(load_tasks(EvaluateSpec(tasks=(str(path),))).tasks) == ["sums"]


def test_a_path_may_be_relative_to_the_include_path(write_task: Write) -> None:
    folder = write_task().parent
    assert list(load_tasks(spec_for(folder, "sums.yaml")).tasks) == ["sums"]


def test_a_tag_stands_for_its_tasks(write_task: Write) -> None:
    folder = write_task("b", tag="skills").parent
    write_task("a", tag="skills")
    write_task("c")
    assert list(load_tasks(spec_for(folder, "skills")).tasks) == ["a", "b"]


def test_a_group_stands_for_its_tasks_with_its_settings(write_task: Write) -> None:
    folder = write_task("a").parent
    write_task("b")
    (folder / "both.yaml").write_text("group: both\ntask: [b, a]\nnum_fewshot: 2\n")
    loaded = load_tasks(spec_for(folder, "both")).tasks
    assert {name: task.num_fewshot for name, task in loaded.items()} == {"b": 2, "a": 2}


def test_tasks_keep_the_order_of_the_recipe(write_task: Write) -> None:
    folder = write_task("a").parent
    write_task("b")
    assert list(load_tasks(spec_for(folder, "b", "a")).tasks) == ["b", "a"]


def test_a_template_file_without_a_name_is_no_task(write_task: Write) -> None:
    path = write_task()
    (path.parent / "template.yaml").write_text("output_type: multiple_choice\n")
    assert list(load_tasks(spec_for(path.parent, "sums")).tasks) == ["sums"]


def test_a_data_file_may_lie_beside_its_yaml(
    write_task: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_task(dataset_kwargs={"data_files": {"test": "sums.jsonl"}})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert len(load_tasks(spec_for(path.parent, "sums")).tasks["sums"].docs) == 24


def test_a_python_function_beside_the_yaml_is_used(write_task: Write) -> None:
    path = write_task()
    (path.parent / "code.py").write_text("def text(doc):\n    return 'code ' + doc['prompt']\n")
    yaml = path.read_text().replace("'Q: {{prompt}} A:'", "!function code.text")
    path.write_text(yaml)
    loaded = load_tasks(spec_for(path.parent, "sums")).tasks["sums"]
    assert loaded.task.doc_to_text(loaded.docs[3]) == "code What follows 3?"


# --- the metric


def test_acc_is_chosen_before_the_first_metric_and_the_recipe_before_both(
    write_task: Write,
) -> None:
    folder = write_task().parent
    assert load_tasks(spec_for(folder, "sums")).tasks["sums"].metric == "acc"
    chosen = load_tasks(spec_for(folder, "sums", metrics={"sums": "acc_norm"}))
    assert chosen.tasks["sums"].metric == "acc_norm"


def test_without_acc_the_first_metric_is_chosen(write_task: Write) -> None:
    metrics = [{"metric": "acc_norm"}, {"metric": "acc_bytes"}]
    folder = write_task(metric_list=metrics).parent
    assert load_tasks(spec_for(folder, "sums")).tasks["sums"].metric == "acc_norm"


def test_a_metric_that_the_task_does_not_have_is_refused(write_task: Write) -> None:
    folder = write_task().parent
    message = r"evaluate.metrics.sums is 'exact_match'; task sums has: acc_norm, acc"
    with pytest.raises(EvaluationError, match=message):
        load_tasks(spec_for(folder, "sums", metrics={"sums": "exact_match"}))


def test_another_metric_or_filter_than_the_usual_one_is_told_apart(write_task: Write) -> None:
    folder = write_task().parent
    usual = load_tasks(spec_for(folder, "sums"))
    named = load_tasks(spec_for(folder, "sums", metrics={"sums": "acc,none"}))
    other = load_tasks(spec_for(folder, "sums", metrics={"sums": "acc_norm"}))
    assert [t.tasks["sums"].chosen for t in (usual, named, other)] == ["", "", "acc_norm,none"]


def test_a_filter_that_the_task_does_not_have_is_refused(write_task: Write) -> None:
    folder = write_task().parent
    with pytest.raises(EvaluationError, match=r"the filters of task sums are: none"):
        load_tasks(spec_for(folder, "sums", metrics={"sums": "acc,strict"}))


def test_a_metric_for_a_task_that_is_not_scored_is_refused(write_task: Write) -> None:
    folder = write_task().parent
    message = r"evaluate.metrics names task 'sum', which is not scored; did you mean 'sums'\?"
    with pytest.raises(EvaluationError, match=message):
        load_tasks(spec_for(folder, "sums", metrics={"sum": "acc"}))


def test_a_metric_of_all_items_may_be_chosen(write_task: Write) -> None:
    folder = write_task(metric_list=[{"metric": "f1"}, {"metric": "acc_norm"}]).parent
    assert load_tasks(spec_for(folder, "sums")).tasks["sums"].metric == "f1"


@pytest.mark.parametrize("metric", ["bypass", "likelihood"])
def test_what_lm_eval_has_no_number_of_is_refused_with_what_it_has(
    write_task: Write, metric: str
) -> None:
    folder = write_task(metric_list=[{"metric": metric}, {"metric": "acc_norm"}]).parent
    message = f"metric {metric} of task sums cannot be chosen: lm-eval.* to one of: acc_norm"
    with pytest.raises(EvaluationError, match=message):
        load_tasks(spec_for(folder, "sums"))


def own_metric(write_task: Write, **facts: Any) -> Path:
    path = write_task(metric_list=[{"metric": "nll", "aggregation": "mean", **facts}])
    (path.parent / "code.py").write_text("def results(doc, results):\n    return {'nll': 1.0}\n")
    path.write_text(path.read_text() + "process_results: !function code.results\n")
    return path.parent


def test_a_direction_that_nobody_states_is_asked_for(write_task: Write) -> None:
    folder = own_metric(write_task)
    message = (
        "task sums: neither its file nor lm-eval says whether more of metric nll is better; set "
        "evaluate.higher_is_better.sums=true, or =false"
    )
    with pytest.raises(EvaluationError, match=message):
        load_tasks(spec_for(folder, "sums"))
    loaded = load_tasks(spec_for(folder, "sums", higher_is_better={"sums": False}))
    assert loaded.tasks["sums"].higher_is_better is False


def test_a_direction_that_the_task_states_is_taken(write_task: Write) -> None:
    folder = own_metric(write_task, higher_is_better=False)
    assert load_tasks(spec_for(folder, "sums")).tasks["sums"].higher_is_better is False


def test_a_direction_that_contradicts_lm_eval_is_asked_for(write_task: Write) -> None:
    wrong = {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": True}
    folder = write_task(metric_list=[wrong]).parent
    message = (
        "task sums: its file says that more of metric brier_score is better, and to lm-eval, whose "
        "metric it is, less is; set evaluate.higher_is_better.sums=true, or =false"
    )
    with pytest.raises(EvaluationError, match=message):
        load_tasks(spec_for(folder, "sums"))
    settled = load_tasks(spec_for(folder, "sums", higher_is_better={"sums": False}))
    assert settled.tasks["sums"].higher_is_better is False
    # Counted in another way it is another number, whose direction the file knows.
    write_task(metric_list=[{**wrong, "aggregation": "median"}])
    assert load_tasks(spec_for(folder, "sums")).tasks["sums"].higher_is_better is True


def test_a_direction_for_a_task_that_is_not_scored_is_refused(write_task: Write) -> None:
    folder = write_task().parent
    message = (
        r"evaluate.higher_is_better names task 'sum', which is not scored; did you mean 'sums'"
    )
    with pytest.raises(EvaluationError, match=message):
        load_tasks(spec_for(folder, "sums", higher_is_better={"sum": True}))


def several(write_task: Write, code: str) -> Path:
    path = write_task(
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{choices[0]}}",
        metric_list=[{"metric": "!function", "aggregation": "mean", "higher_is_better": True}],
    )
    (path.parent / "code.py").write_text(code)
    path.write_text(path.read_text().replace("'!function'", "!function code.several"))
    return path.parent


def test_each_of_the_metrics_that_a_function_returns_may_be_chosen(write_task: Write) -> None:
    code = "def several(references, predictions):\n    return {'one': 1.0, 'two': 2.0}\n"
    folder = several(write_task, code)
    assert load_tasks(spec_for(folder, "sums")).tasks["sums"].metric == "one"
    chosen = load_tasks(spec_for(folder, "sums", metrics={"sums": "two"})).tasks["sums"]
    assert (chosen.metric, chosen.higher_is_better) == ("two", True)
    with pytest.raises(EvaluationError, match="metrics.sums is 'three'; task sums has: one, two"):
        load_tasks(spec_for(folder, "sums", metrics={"sums": "three"}))


def test_a_function_that_takes_no_empty_answer_is_known_by_its_name(write_task: Write) -> None:
    code = "def several(references, predictions):\n    return {'one': 1 / len(predictions[0])}\n"
    assert load_tasks(spec_for(several(write_task, code), "sums")).tasks["sums"].metric == "several"


@pytest.mark.parametrize(
    ("aggregated", "rule"),
    [
        ([{"metric": "acc", "weight_by_size": False}], False),
        ([{"metric": "acc"}], True),
        ([{"metric": "acc", "filter_list": "strict"}], None),
        (None, None),
    ],
)
def test_a_group_has_lm_evals_rule_where_lm_eval_has_a_number_of_it(
    write_task: Write, aggregated: Any, rule: bool | None
) -> None:
    folder = write_task("a").parent
    write_task("b")
    config = {"group": "both", "task": ["b", "a"], "aggregate_metric_list": aggregated}
    (folder / "both.yaml").write_text(
        yaml.safe_dump({k: v for k, v in config.items() if v is not None})
    )
    groups = load_tasks(spec_for(folder, "both")).groups
    assert {n: (g.tasks, g.by_size) for n, g in groups.items()} == (
        {} if rule is None else {"both": (("b", "a"), rule)}
    )


def test_a_groups_own_metric_is_chosen_for_its_tasks(write_task: Write) -> None:
    folder = write_task("a").parent
    config = {"group": "g", "task": ["a"], "aggregate_metric_list": [{"metric": "acc_norm"}]}
    (folder / "g.yaml").write_text(yaml.safe_dump(config))
    assert load_tasks(spec_for(folder, "g")).tasks["a"].metric == "acc_norm"
    assert load_tasks(spec_for(folder, "a")).tasks["a"].metric == "acc"
    assert load_tasks(spec_for(folder, "g", metrics={"a": "acc"})).groups == {}


def test_a_groups_own_filter_is_chosen_for_its_tasks(write_task: Write) -> None:
    filters = [{"name": n, "filter": [{"function": "take_first"}]} for n in ("strict", "flexible")]
    folder = write_task("a", filter_list=filters).parent
    aggregated = [{"metric": "acc", "filter_list": "flexible", "weight_by_size": False}]
    config = {"group": "g", "task": ["a"], "aggregate_metric_list": aggregated}
    (folder / "g.yaml").write_text(yaml.safe_dump(config))
    tasks = load_tasks(spec_for(folder, "g"))
    assert tasks.tasks["a"].filter == "flexible"
    assert tasks.groups["g"].by_size is False
    strict = load_tasks(spec_for(folder, "g", metrics={"a": "acc,strict"}))
    assert (strict.tasks["a"].filter, strict.groups) == ("strict", {})


# --- right answers


def gold_warnings(
    write_task: Write, caplog: pytest.LogCaptureFixture, target: Any, answers: list[Any]
) -> list[str]:
    rows = [{"prompt": f"Q{i}", "answer": answer} for i, answer in enumerate(answers)]
    path = write_task(items=rows, doc_to_choice=["1", "2", "3"], doc_to_target=target)
    load_tasks(spec_for(path.parent, "sums"))
    return [record.getMessage() for record in caplog.records]


def test_digits_that_a_template_renders_are_warned_of(
    write_task: Write, caplog: pytest.LogCaptureFixture
) -> None:
    [warning] = gold_warnings(write_task, caplog, "{{answer}}", ["1", "2"])
    assert "on 2 of 2 items for another than the one that reads so: item 0 says '1'" in warning
    assert "counts '2' as right; name the column itself where its text is meant" in warning


def test_the_remedy_of_that_warning_works(
    write_task: Write, caplog: pytest.LogCaptureFixture
) -> None:
    assert gold_warnings(write_task, caplog, "answer", ["1", "2"]) == []


def test_a_column_of_numbers_is_meant_as_numbers_of_choices(
    write_task: Write, caplog: pytest.LogCaptureFixture
) -> None:
    assert gold_warnings(write_task, caplog, "answer", [0, 2, 1]) == []


@pytest.mark.parametrize(
    ("target", "answers", "said"), [("answer", ["1", "5"], "'5'"), ("{{answer}}", [0, 3], "3")]
)
def test_a_right_answer_that_is_no_choice_is_warned_of(
    write_task: Write,
    caplog: pytest.LogCaptureFixture,
    target: str,
    answers: list[Any],
    said: str,
) -> None:
    warnings = gold_warnings(write_task, caplog, target, answers)
    assert (
        f"1 of 2 items is none of the choices, so no model can be right: item 1 says {said} and"
        in (" ".join(warnings))
    )


def test_a_metric_that_lm_eval_does_not_have_is_refused_with_a_suggestion(
    write_task: Write,
) -> None:
    folder = write_task(metric_list=[{"metric": "acc_nrom", "aggregation": "mean"}]).parent
    message = r"task sums: unknown metric 'acc_nrom'; did you mean 'acc_norm'\? lm-eval has: acc,"
    with pytest.raises(EvaluationError, match=message):
        load_tasks(spec_for(folder, "sums"))


def from_hf_evaluate(write_task: Write, metric: str, **changes: Any) -> Path:
    entry = {"metric": metric, "hf_evaluate": True, "aggregation": "mean", "higher_is_better": True}
    return write_task(metric_list=[entry], **changes).parent


def test_a_metric_from_hf_evaluate_that_cannot_be_fetched_is_refused(write_task: Write) -> None:
    folder = from_hf_evaluate(
        write_task,
        "exact_match",
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{choices[0]}}",
    )
    with pytest.raises(EvaluationError, match="is to come from HF evaluate"):
        load_tasks(spec_for(folder, "sums"))


def test_where_lm_eval_counts_itself_no_metric_is_fetched(write_task: Write) -> None:
    folder = from_hf_evaluate(write_task, "acc")
    assert load_tasks(spec_for(folder, "sums")).tasks["sums"].metric == "acc"


def test_an_unknown_aggregation_is_refused(write_task: Write) -> None:
    metric = {"metric": "acc", "aggregation": "average", "higher_is_better": True}
    folder = write_task(metric_list=[metric]).parent
    with pytest.raises(EvaluationError, match="the aggregation of metric 'acc' is unknown"):
        load_tasks(spec_for(folder, "sums"))


# --- what is wrong with tasks


def test_no_tasks_at_all_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="evaluate.tasks is empty"):
        load_tasks(EvaluateSpec())


@pytest.mark.usefixtures("without_shipped")
def test_an_unknown_name_gets_a_suggestion_and_what_there_is(write_task: Write) -> None:
    folder = write_task().parent
    message = (
        rf"unknown task 'smus'; did you mean 'sums'\? evaluate.include_path {folder} has: sums"
    )
    with pytest.raises(EvaluationError, match=message):
        load_tasks(spec_for(folder, "smus"))


@pytest.mark.usefixtures("without_shipped")
def test_an_unknown_name_without_an_include_path_says_to_set_one() -> None:
    with pytest.raises(EvaluationError, match="unknown task 'x'; set evaluate.include_path"):
        load_tasks(EvaluateSpec(tasks=("x",)))


@pytest.mark.usefixtures("without_shipped")
def test_a_folder_of_yml_files_is_explained(write_task: Write) -> None:
    path = write_task()
    path.rename(path.with_suffix(".yml"))
    with pytest.raises(EvaluationError, match=r"only files named \*.yaml are read"):
        load_tasks(spec_for(path.parent, "sums"))


def test_a_missing_include_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"evaluate.include_path .*nowhere is no directory"):
        load_tasks(spec_for(tmp_path / "nowhere", "sums"))


def test_a_missing_task_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"task file .*gone.yaml does not exist"):
        load_tasks(EvaluateSpec(tasks=(str(tmp_path / "gone.yaml"),)))


def test_a_broken_file_is_an_error_even_if_another_task_is_asked_for(write_task: Write) -> None:
    path = write_task()
    (path.parent / "arc_easy.yaml").write_text("task: [arc_easy\nmetric: {")
    with pytest.raises(
        EvaluationError, match=r"task file .*arc_easy.yaml is broken: while parsing"
    ):
        load_tasks(spec_for(path.parent, "sums"))


def test_a_file_without_a_task_name_cannot_be_asked_for_by_path(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("output_type: multiple_choice\n")
    with pytest.raises(EvaluationError, match=r"task file .*x.yaml is broken"):
        load_tasks(EvaluateSpec(tasks=(str(path),)))


def test_two_files_with_one_name_are_refused(write_task: Write) -> None:
    path = write_task()
    shutil.copy(path, path.parent / "copy.yaml")
    with pytest.raises(EvaluationError, match="task 'sums' is defined twice"):
        load_tasks(spec_for(path.parent, "sums"))


def test_a_task_named_twice_is_refused(write_task: Write) -> None:
    folder = write_task(tag="skills").parent
    with pytest.raises(EvaluationError, match="task 'sums' twice: by 'sums' and by 'skills'"):
        load_tasks(spec_for(folder, "sums", "skills"))


def test_a_missing_data_file_is_named(write_task: Write) -> None:
    folder = write_task(dataset_kwargs={"data_files": {"test": "gone.jsonl"}}).parent
    with pytest.raises(EvaluationError, match="task sums: data file gone.jsonl does not exist"):
        load_tasks(spec_for(folder, "sums"))


def test_a_template_over_a_missing_field_is_an_error(write_task: Write) -> None:
    folder = write_task(doc_to_text="{{question}}").parent
    with pytest.raises(EvaluationError, match="task sums cannot be loaded: .*'question' is undef"):
        load_tasks(spec_for(folder, "sums"))


def test_a_missing_split_is_an_error(write_task: Write) -> None:
    folder = write_task(test_split="validation").parent
    with pytest.raises(EvaluationError, match="task sums cannot be loaded: KeyError: 'validation'"):
        load_tasks(spec_for(folder, "sums"))


def test_a_hub_dataset_fails_at_once_when_the_hub_cannot_be_reached(write_task: Write) -> None:
    folder = write_task(dataset_path="nobody/nothing", dataset_kwargs=None).parent
    started = time.monotonic()
    message = "task sums needs dataset nobody/nothing from the Hugging Face hub, which is not in"
    with pytest.raises(EvaluationError, match=message):
        load_tasks(spec_for(folder, "sums"))
    assert time.monotonic() - started < 10


def test_without_the_offline_variable_an_unreachable_hub_costs_one_try(
    write_task: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert not silence.hub_is_reachable()
    folder = write_task(dataset_path="nobody/nothing", dataset_kwargs=None).parent
    started = time.monotonic()
    with pytest.raises(EvaluationError, match="cannot be reached"):
        load_tasks(spec_for(folder, "sums"))
    assert time.monotonic() - started < 10
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_more_examples_than_there_are_is_an_error(write_task: Write) -> None:
    folder = write_task().parent
    message = (
        r"task sums has \d+ examples to draw from for its dev part, \d+ more being items of the"
        r" other part, fewer than num_fewshot 25; set evaluate.num_fewshot, or name another split"
    )
    with pytest.raises(EvaluationError, match=message):
        load_tasks(spec_for(folder, "sums", num_fewshot=25))


def test_a_task_that_says_no_examples_keeps_none(write_task: Write) -> None:
    folder = write_task(num_fewshot=0).parent
    assert load_tasks(spec_for(folder, "sums", num_fewshot=3)).tasks["sums"].num_fewshot == 0


def test_a_task_that_runs_code_is_refused(write_task: Write) -> None:
    folder = write_task(unsafe_code=True).parent
    with pytest.raises(EvaluationError, match="task sums runs code that the model writes"):
        load_tasks(spec_for(folder, "sums"))


def test_a_task_with_images_is_refused(write_task: Write) -> None:
    folder = write_task(doc_to_image="prompt").parent
    with pytest.raises(EvaluationError, match="task sums needs images or sound"):
        load_tasks(spec_for(folder, "sums"))


@pytest.mark.usefixtures("without_shipped")
def test_lm_evals_own_tasks_are_found_by_name_and_say_that_they_need_the_hub() -> None:
    with pytest.raises(EvaluationError, match="task arc_easy needs dataset allenai/ai2_arc"):
        load_tasks(EvaluateSpec(tasks=("arc_easy",)))


@pytest.mark.slow
def test_lm_evals_own_groups_are_found_and_its_names_are_suggested() -> None:
    own = catalogue.Catalogue(None)
    with silence.quiet():
        with pytest.raises(EvaluationError, match="task ai2_arc|arc_challenge needs dataset"):
            own.build("ai2_arc")
        with pytest.raises(
            EvaluationError, match=r"unknown task 'arc_esay'; did you mean 'arc_easy'"
        ):
            own.build("arc_esay")


# --- the digest


def digest(spec: EvaluateSpec, part: str = "dev") -> str:
    return load_tasks(spec).tasks["sums"].digests[part]


def test_the_same_questions_elsewhere_have_the_same_digest(
    write_task: Write, tmp_path: Path
) -> None:
    here, there = write_task().parent, write_task(folder=tmp_path / "moved").parent
    assert digest(spec_for(here, "sums")) == digest(spec_for(there, "sums"))


def test_the_parts_have_digests_of_their_own(write_task: Write) -> None:
    spec = spec_for(write_task().parent, "sums")
    assert digest(spec, "dev") != digest(spec, "confirm")


@pytest.mark.parametrize(
    "settings",
    [
        {"num_fewshot": 2},
        {"seed": 7},
        {"limit": 3},
        {"batch_size": 8},
        {"max_length": 64},
        {"dtype": "float32"},
        {"split_salt": "x"},
        {"apply_chat_template": True},
    ],
)
def test_whatever_changes_answers_changes_the_digest(
    write_task: Write, settings: dict[str, Any]
) -> None:
    folder = write_task().parent
    assert digest(spec_for(folder, "sums", **settings)) != digest(spec_for(folder, "sums"))


def test_the_chosen_metric_and_the_device_do_not_change_the_digest(write_task: Write) -> None:
    folder = write_task().parent
    other = spec_for(folder, "sums", metrics={"sums": "acc_norm"}, device="cpu")
    assert digest(other) == digest(spec_for(folder, "sums"))


def test_another_prompt_or_item_changes_the_digest(write_task: Write, tmp_path: Path) -> None:
    before = digest(spec_for(write_task().parent, "sums"))
    prompt = write_task(folder=tmp_path / "prompt", doc_to_text="{{prompt}}")
    assert digest(spec_for(prompt.parent, "sums")) != before
    item = write_task(folder=tmp_path / "item")
    data = item.with_suffix(".jsonl")
    data.write_text(data.read_text().replace("What", "Which"))
    assert digest(spec_for(item.parent, "sums")) != before


def test_code_that_a_task_function_calls_changes_the_digest(
    write_task: Write, tmp_path: Path
) -> None:
    found = []
    for mark in "ab":
        path = write_task(folder=tmp_path / mark)
        code = f"MARK = {mark!r}\n\ndef text(doc):\n    return MARK + doc['prompt']\n"
        (path.parent / "code.py").write_text(code)
        path.write_text(path.read_text().replace("'Q: {{prompt}} A:'", "!function code.text"))
        found.append(digest(spec_for(path.parent, "sums")))
    assert found[0] != found[1]


def test_every_file_of_a_tasks_folder_is_part_of_its_digest(
    write_task: Write, tmp_path: Path
) -> None:
    found = []
    for mark in "ab":
        path = write_task(folder=tmp_path / mark)
        (path.parent / "text.py").write_text("def text(doc):\n    return 'x'\n")
        (path.parent / "words.py").write_text(f"MARK = {mark!r}\n")
        path.write_text(path.read_text().replace("'Q: {{prompt}} A:'", "!function text.text"))
        found.append(digest(spec_for(path.parent, "sums")))
    assert found[0] != found[1]


def test_a_function_that_is_an_object_counts_by_the_code_of_its_class(
    write_task: Write, tmp_path: Path
) -> None:
    found = []
    for mark in "aab":
        path = write_task(folder=tmp_path / str(len(found)))
        call = f"    def __call__(self, doc):\n        return {mark!r}\n"
        code = f"class Text:\n{call}\n\ntext = Text()\n"
        (path.parent / "object.py").write_text(code)
        path.write_text(path.read_text().replace("'Q: {{prompt}} A:'", "!function object.text"))
        found.append(digest(spec_for(path.parent, "sums")))
    assert found[0] == found[1] != found[2]


def test_another_version_of_transformers_asks_again(
    write_task: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeops.evaluate import how_asked

    spec = spec_for(write_task().parent, "sums")
    before = digest(spec)
    monkeypatch.setattr(how_asked, "version", lambda package: f"another {package}")
    assert digest(spec) != before


# --- manners


def test_loading_is_silent_and_leaves_the_environment_alone(
    write_task: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub.constants

    spec = spec_for(write_task().parent, "sums", num_fewshot=1)
    load_tasks(spec)  # the first import may set its own defaults
    capfd.readouterr()
    before, constant = dict(os.environ), huggingface_hub.constants.HF_HUB_OFFLINE
    load_tasks(spec)
    assert dict(os.environ) == before
    assert huggingface_hub.constants.HF_HUB_OFFLINE is constant
    assert capfd.readouterr() == ("", "")


def test_an_empty_part_is_named_when_it_is_needed(write_task: Write) -> None:
    loaded = load_tasks(spec_for(write_task().parent, "sums", confirm_fraction=0.0)).tasks["sums"]
    assert len(loaded.needed_ids("dev")) == 24
    with pytest.raises(EvaluationError, match="task sums has no items in its confirm part: 24"):
        loaded.needed_ids("confirm")


# --- few-shot examples and the split


def prompts_of(loaded: Any, part: str) -> str:
    from mergeops.evaluate.answers import build_requests

    return "".join(
        request.args[0] for request in build_requests(loaded, part, EvaluateSpec(), None)
    )


def test_no_prompt_shows_an_item_of_the_other_part(write_task: Write) -> None:
    """The examples come from the test split itself, where nothing else is named."""
    [task] = load_tasks(spec_for(write_task().parent, "sums", num_fewshot=3)).tasks.values()
    for part, other in (("dev", "confirm"), ("confirm", "dev")):
        shown = prompts_of(task, part)
        for i in task.ids[other]:
            assert f"What follows {i}?" not in shown
        assert {doc["prompt"] for doc in task.pools[part]} == {
            task.docs[i]["prompt"] for i in task.ids[part]
        }


def test_an_item_that_is_also_in_the_training_data_is_no_example_for_the_other_part(
    write_task: Write,
) -> None:
    folder = write_task().parent
    train = folder / "train.jsonl"
    more = [
        {"prompt": f"What follows {i}?", "choices": list("abcd"), "answer": 0}
        for i in range(24, 30)
    ]
    own = (folder / "sums.jsonl").read_text()
    train.write_text(own + "".join(json.dumps(row) + "\n" for row in more))
    path = folder / "sums.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["dataset_kwargs"]["data_files"]["train"] = str(train)
    path.write_text(yaml.safe_dump({**raw, "fewshot_split": "train"}))
    [task] = load_tasks(spec_for(folder, "sums", num_fewshot=3)).tasks.values()
    for part, other in (("dev", "confirm"), ("confirm", "dev")):
        allowed = [i for i in range(30) if i not in task.ids[other]]
        assert [doc["prompt"] for doc in task.pools[part]] == [
            f"What follows {i}?" for i in allowed
        ]


def passages() -> list[dict[str, Any]]:
    return [
        {"prompt": f"On {i // 4}: {i}?", "choices": ["a", "b"], "answer": 0, "page": i // 4}
        for i in range(80)
    ]


def test_the_split_keeps_clusters_whole_and_no_prompt_shows_one_of_the_other_part(
    write_task: Write,
) -> None:
    folder = write_task(items=passages()).parent
    spec = spec_for(folder, "sums", clusters={"sums": "page"}, num_fewshot=2)
    [task] = load_tasks(spec).tasks.values()
    pages = {part: {task.docs[i]["page"] for i in ids} for part, ids in task.ids.items()}
    assert pages["dev"] | pages["confirm"] == set(range(20))
    assert not pages["dev"] & pages["confirm"]
    for part in ("dev", "confirm"):
        assert {doc["page"] for doc in task.pools[part]} == pages[part]


def test_one_question_under_two_names_is_in_one_part_and_in_no_prompt_of_the_other(
    write_task: Write,
) -> None:
    questions = [
        {"prompt": f"What is {i}?", "choices": ["a", "b"], "answer": i % 2} for i in range(24)
    ]
    items = [{**item, "id": copy} for copy in "xy" for item in questions]
    [task] = load_tasks(
        spec_for(write_task(items=items).parent, "sums", num_fewshot=2)
    ).tasks.values()
    for part, other in (("dev", "confirm"), ("confirm", "dev")):
        assert {i % 24 for i in task.ids[part]}.isdisjoint(i % 24 for i in task.ids[other])
        shown = {doc["prompt"] for doc in task.pools[part]}
        assert shown == {task.docs[i]["prompt"] for i in task.ids[part]}
    assert task.ids["dev"]
    assert task.ids["confirm"]


def test_another_prompt_moves_no_item_to_the_other_part(write_task: Write, tmp_path: Path) -> None:
    other = write_task(folder=tmp_path / "other", doc_to_text="Well, {{prompt}}")
    [one] = load_tasks(spec_for(write_task().parent, "sums")).tasks.values()
    [two] = load_tasks(spec_for(other.parent, "sums")).tasks.values()
    assert one.ids == two.ids


def test_a_limit_does_not_free_hidden_items_for_prompts(write_task: Write) -> None:
    folder = write_task().parent
    [whole] = load_tasks(spec_for(folder, "sums", num_fewshot=2)).tasks.values()
    [few] = load_tasks(spec_for(folder, "sums", num_fewshot=2, limit=3)).tasks.values()
    assert few.pools == whole.pools


# --- patterns and groups


def test_a_pattern_is_every_task_of_ones_own_that_fits(write_task: Write) -> None:
    folder = write_task("math_a").parent
    write_task("math_b")
    write_task("other")
    assert list(load_tasks(spec_for(folder, "*")).tasks) == ["math_a", "math_b", "other"]
    assert list(load_tasks(spec_for(folder, "math_*")).tasks) == ["math_a", "math_b"]
    with pytest.raises(EvaluationError, match=r"'phys\*', which fits no task; .* has: math_a"):
        load_tasks(spec_for(folder, "phys*"))


def test_a_pattern_without_a_folder_says_what_is_missing() -> None:
    with pytest.raises(EvaluationError, match=r"'\*', which fits no task; set evaluate.include"):
        load_tasks(EvaluateSpec(tasks=("*",)))


GROUPS = ("default", "quick", "reasoning", "knowledge", "retention", "custom")


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_composes_and_names_tasks_and_metrics_that_lm_eval_has(group: str) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    from mergeops.evaluate.catalogue import _shipped_file
    from mergeops.recipe.composition import compose

    recipe = compose([f"evaluate={group}", "sources.a.uri=/a", "method=linear"])
    spec = recipe.evaluate
    assert spec.tasks or group in ("default", "quick")
    assert set(spec.metrics) <= set(spec.tasks)
    for task in spec.tasks if group != "custom" else ():
        if task == "mmlu":
            continue  # a group of lm-eval's
        file = _shipped_file(task)
        assert file is not None, task
        config = load_yaml(file, resolve_func=False)
        metric, _, chosen = spec.metrics.get(task, "acc").partition(",")
        assert metric in [entry["metric"] for entry in config["metric_list"]], task
        if chosen:
            assert chosen in [entry["name"] for entry in config["filter_list"]]


@pytest.mark.parametrize("group", ["reasoning", "retention"])
def test_a_group_that_needs_the_hub_says_so_without_it(group: str) -> None:
    from mergeops.recipe.composition import compose

    recipe = compose([f"evaluate={group}", "sources.a.uri=/a", "method=linear"])
    message = r"task \w+ needs dataset \S+ from the Hugging Face hub, which is not in the local"
    with pytest.raises(EvaluationError, match=message):
        load_tasks(recipe.evaluate)
