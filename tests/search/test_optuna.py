"""strategy=optuna: a study end to end; killed, it goes on; what it cannot do is said first."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.user_place import command, environment

from mergeops.checkpoint import locked
from mergeops.errors import ConfigError, EvaluationError
from mergeops.evaluate import seat
from mergeops.recipe import compose
from mergeops.search import completed, parameter_types, racing, study_run
from mergeops.search.bench import Bench
from mergeops.search.samplers import SAMPLERS, open_sampler
from mergeops.search.space import Space
from mergeops.store import connect

WORDS = ("search", "--config-dir", "conf", "recipe=three", "strategy=optuna")
TOY = ("base=/b", "sources={a: /a, b: /b}", "search=optuna")


@pytest.fixture
def small_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages of 9, 18, 35 and 70 items."""
    monkeypatch.setattr(racing, "FEWEST", 8)


def table(found: dict[str, Any]) -> list[Any]:
    return [{k: v for k, v in row.items() if k != "reason"} for row in found["trials"]]


def test_a_study_beats_its_baselines_or_says_that_it_did_not(
    study: Callable[..., dict[str, Any]], place: Path
) -> None:
    found = study("search.trials=5", "search.keep=2", pictures=True)
    assert [each["number"] for each in found["trials"]] == [1, 2, 3, 4, 5]
    assert all(each["state"] == "whole" for each in found["trials"]), "too few items to race"
    assert {"best_source", "uniform_soup", "task_arithmetic_0.3"} <= found["baselines"].keys()
    assert len(found["kept"]) == 2
    assert found["cost"]["answers"] == 70 * found["cost"]["full_evaluations"]
    assert found["cost"]["bytes_written"] == 0 and found["cost"]["merge_seconds"] > 0
    whole = [each["score"] for each in found["trials"]]
    kept = [trial["dev_score"] for trial in found["kept"]]
    assert max(kept) >= max(whole), "the best of all is kept, scored as it was in memory"
    assert not list((place / "mergeops-work" / "studies").rglob("*.safetensors"))
    assert not list(Path("/dev/shm").glob("mergeops-*"))

    # A longer study of the same kind goes on: what was scored is neither merged nor asked.
    again = study("search.trials=5", "search.keep=1")
    assert table(again) == table(found) and again["cost"]["merge_seconds"] == 0

    tracking = connect(compose(TOY).tracking)
    runs = tracking.search_runs("tags.`mergeops.role` = 'candidate'")
    numbers = [run.data.tags["mergeops.candidate"] for run in runs]
    assert sorted(numbers) == sorted(2 * ["1", "2", "3", "4", "5"])
    first = next(run for run in runs if run.data.tags["mergeops.candidate"] == "1")
    assert first.data.params["method"] == found["trials"][0]["parameters"]["method"]
    assert first.data.metrics["pooled"] == whole[0]
    log, *_ = tracking.search_runs("tags.`mergeops.role` = 'search'")
    artifacts = tracking.client.list_artifacts(log.info.run_id)
    assert {"study.json", "optuna.log", "trials.csv", "trials.json"} <= {a.path for a in artifacts}
    pictures = tracking.client.list_artifacts(log.info.run_id, "plots")
    assert {"plots/slice.png", "plots/parallel_coordinate.png"} <= {a.path for a in pictures}
    curve = tracking.client.get_metric_history(log.info.run_id, "study/best")
    assert curve[0].step == 70 and [m.value for m in curve] == sorted(m.value for m in curve)


def test_a_study_that_was_cut_goes_on_and_is_the_same_study(
    study: Callable[..., dict[str, Any]], small_stages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("search.trials=5", "search.margin=0.2", "search.earlier=0")
    original, count = Bench.try_out, 0

    def cut(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "try_out", cut)
        with pytest.raises(KeyboardInterrupt):
            study(*words)
    found = study(*words)
    fresh = study(*words, "output.dir=elsewhere")
    assert table(found) == table(fresh)
    states = {row["state"] for row in found["trials"]}
    assert states <= {"whole", "dropped"} and "dropped" in states
    assert all(row["rung"] < 4 for row in found["trials"] if row["state"] == "dropped")
    assert found["cost"]["full_evaluations"] < 10


def test_two_objectives_give_a_front_with_a_knee(study: Callable[..., dict[str, Any]]) -> None:
    found = study("search.trials=5", "search.objectives=[add, sub]", "search.sampler=nsga2")
    rows = {row["candidate"]: row for row in found["front"]["candidates"]}
    points = [(row["add"]["score"], row["sub"]["score"]) for row in rows.values()]
    assert points == sorted(points, reverse=True), "nobody on a front is better in both"
    assert [b for _, b in points] == sorted(b for _, b in points)
    low, high = next(iter(rows.values()))["add"]["interval"]
    assert low < high and found["front"]["knee"] in rows
    assert found["kept"][0]["name"] == found["front"]["knee"]
    assert found["trials"][0]["objectives"].keys() == {"add", "sub"}


def test_a_merge_that_breaks_a_limit_is_no_winner(study: Callable[..., dict[str, Any]]) -> None:
    free = study("search.trials=2", "search.constraints={add: -1.0}")
    assert all(row["broken"] == [] for row in free["trials"]) and len(free["kept"]) == 1
    with pytest.raises(EvaluationError, match="keeps search.constraints where there are some"):
        study("search.trials=2", "search.constraints={add: 1.0}")


def test_a_budget_of_evaluations_ends_the_study(study: Callable[..., dict[str, Any]]) -> None:
    found = study("search.budget='9 evaluations'")
    assert 9 <= found["cost"]["full_evaluations"] <= 10
    assert 0 < len(found["trials"]) < 9


def test_the_best_of_an_earlier_study_is_tried_first(study: Callable[..., dict[str, Any]]) -> None:
    before = study("search.trials=4", "search.sampler=random", "search.seed=5")
    best = max(before["trials"], key=lambda row: row["score"])
    after = study("search.trials=2", "search.earlier=1", "search.seed=6")
    assert after["trials"][0]["parameters"] == best["parameters"]
    assert after["trials"][0]["score"] == best["score"]
    assert after["trials"][1]["parameters"] != best["parameters"]


@pytest.mark.sweep
def test_two_workers_try_out_all_that_is_proposed(
    study: Callable[..., dict[str, Any]], small_stages: None
) -> None:
    words = ("search.trials=4", "search.sampler=random", "search.margin=0.2", "search.earlier=0")
    found = study(*words, "executor.workers=2")
    alone = study(*words, "output.dir=elsewhere")
    assert [r["parameters"] for r in found["trials"]] == [r["parameters"] for r in alone["trials"]]
    assert {r["state"] for r in found["trials"]} <= {"whole", "dropped"}
    both = zip(found["trials"], alone["trials"], strict=True)
    assert all(a["score"] == b["score"] for a, b in both if a["state"] == b["state"] == "whole")
    again = study(*words)
    assert table(again) == table(found), "one worker goes on with what two began"
    assert again["cost"]["merge_seconds"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.objectives=[add, mul]"], "search.objectives: task 'mul' is not scored; "),
        (["search.objectives=[add]"], "it takes two tasks or more, or none for all"),
        (["search.constraints={mul: -0.01}"], "search.constraints: task 'mul' is not scored"),
        (["search.constraints={add: -5}"], "search.constraints.add is -5.* a number from -1 to 1"),
        (
            [
                "search.objectives=[add, sub]",
                "search.sampler=cmaes",
                "search.space={method: ties, method.density: [0.1, 0.9]}",
            ],
            "cmaes takes one objective, and search.objectives has 2; take search.sampler=tpe",
        ),
        (
            [
                "search.constraints={add: 0}",
                "search.sampler=cmaes",
                "search.space={method: ties, method.density: [0.1, 0.9]}",
            ],
            "cmaes knows no search.constraints; take search.sampler=tpe",
        ),
        (["search.budget=2 weeks"], "search.budget is '2 weeks'; it takes a time or full evalu"),
        (["search.budget=0h"], "search.budget is '0h'; it takes a time or full evaluations"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    study: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(seat, "load_model", refuse)
    with pytest.raises(ConfigError, match=message):
        study(*words)


@pytest.mark.sweep
def test_a_killed_study_goes_on_and_is_the_same_study(
    study: Callable[..., dict[str, Any]], place: Path
) -> None:
    same = ("search.trials=3", "search.sampler=random", "search.earlier=0")
    words = (*WORDS, *same)
    process = subprocess.Popen(
        command(*words),
        cwd=place,
        env=environment(place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "1/3" in line:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    found = study(*same)
    fresh = study(*same, "output.dir=elsewhere")
    assert table(found) == table(fresh)


def test_the_config_that_is_shown_has_the_space_that_will_be_searched() -> None:
    recipe = completed(compose(TOY, strategies=parameter_types()))
    assert recipe.search.parameters["space"]["sources.*.weight"] == [0.0, 1.0]
    assert recipe.search.parameters["space"]["method"][-1] == "dare_ties"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("search.trials=0", "search.trials is 0; allowed: at least 1|from 1 to"),
        ("search.sampler=tep", "search.sampler is 'tep'; allowed: tpe, gp, cmaes, nsga2, random"),
        ("search.margin=2", "search.margin is 2.0; allowed: from 0 to 1"),
        ("search.keep=0", "search.keep is 0; allowed: from 1 to 100"),
    ],
)
def test_a_parameter_out_of_range_is_refused_when_the_recipe_is_read(
    word: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compose([*TOY, word], strategies=parameter_types())


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_proposes_the_same_for_the_same_seed(name: str) -> None:
    import optuna

    recipe = compose([*TOY, "method=linear"])
    space = Space.read(recipe, {"sources.*.weight": [0.2, 1.0]})

    def proposals() -> list[dict[str, Any]]:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        made = optuna.create_study(direction="maximize", sampler=open_sampler(name, space, 7))
        values = []
        for _ in range(12):
            trial = made.ask()
            values.append(space.drawn(trial))
            made.tell(trial, -abs(values[-1]["sources.a.weight"] - 0.5))
        return values

    first = proposals()
    assert first == proposals() and len({str(v) for v in first}) > 6


def test_cma_es_takes_no_words() -> None:
    space = Space.read(compose(TOY), {"method": ["linear", "ties"], "sources.*.weight": [0.0, 1.0]})
    with pytest.raises(
        ConfigError, match="cmaes takes numbers only, and search.space chooses meth"
    ):
        open_sampler("cmaes", space, 0)


def test_one_source_is_nothing_to_search(study: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="optuna needs at least two sources.* the recipe has 1"):
        study("only=[math]")


def test_a_command_with_workers_of_its_own_helps_no_other(
    study: Callable[..., dict[str, Any]], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("search.trials=1", "executor.workers=2")

    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study_run, "open_executor", cut)
        with pytest.raises(KeyboardInterrupt):
            study(*words)
    [lock] = (place / "mergeops-work" / "studies").glob("*/lock")
    with locked(lock), pytest.raises(ConfigError, match="another process runs this study in"):
        study(*words)
