"""A trial in MLflow: parents in, merge out, everything that pins it, nothing secret."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tracking_case import Case, make_recipe, make_scores, make_source

from mergeops.errors import TrackingError
from mergeops.lineage import find_family
from mergeops.recipe.recipe import Recipe
from mergeops.recipe.settings import PromoteSpec
from mergeops.report import leaderboard_of, standing_of
from mergeops.store import own_tags
from mergeops.tracking import (
    log_leaderboard,
    log_parent,
    log_unregistered,
    read_recipe,
    register_trial,
    reopen,
    search_run,
)
from mergeops.tracking.score_log import scored_runs


def artifact(case: Case, run_id: str, name: str, folder: Path) -> str:
    return Path(case.tracking.client.download_artifacts(run_id, name, str(folder))).read_text()


def test_parents_are_inputs_and_the_merge_is_the_only_output(case: Case) -> None:
    run_id, _ = case.whole()
    client = case.tracking.client
    run = client.get_run(run_id)
    names = {
        client.get_logged_model(model.model_id).name: model.model_id
        for model in run.inputs.model_inputs
    }
    assert sorted(names) == ["base", "dates", "math"]
    (output,) = run.outputs.model_outputs
    assert output.model_id not in names.values()
    merge = client.get_logged_model(output.model_id)
    assert (merge.name, merge.model_type, str(merge.status)) == (
        "task_arithmetic density=0p5",
        "merge",
        "READY",
    )
    assert merge.source_run_id == run_id


def test_lineage_can_be_searched_by_tags(case: Case) -> None:
    run_id, _ = case.whole()
    training = case.sources["math"].run_id
    (found,) = case.tracking.client.search_runs(
        [case.tracking.experiment_id], f"tags.`mlflow.mergeops.parent.{training}` = '0.5'"
    )
    assert found.info.run_id == run_id
    assert own_tags(found.data.tags)["mergeops.parent_run_ids"] == training
    assert len(own_tags(found.data.tags)["mergeops.parent_model_ids"].split(",")) == 3


def test_the_training_run_of_a_source_is_left_as_it_was(case: Case) -> None:
    client, training = case.tracking.client, case.sources["math"].run_id
    before = client.get_run(training)
    case.whole()
    after = client.get_run(training)
    assert after.info.status == "FAILED"
    assert after.data.to_dictionary() == before.data.to_dictionary()


def test_the_recipe_is_parameters_and_a_file(case: Case, tmp_path: Path) -> None:
    run_id, _ = case.whole()
    params = case.tracking.client.get_run(run_id).data.params
    assert params["method"] == "task_arithmetic"
    assert params["sources.math.weight"] == "0.5"
    assert params["base"] == "hf://someone/tiny@abc"
    assert params["evaluate.batch_size"] == "32"
    written = yaml.safe_load(artifact(case, run_id, "recipe.yaml", tmp_path))
    assert written["sources"] == case.recipe.to_dict()["sources"]


def test_the_recipe_and_the_pooled_score_are_those_of_the_latest_scores(
    case: Case, tmp_path: Path
) -> None:
    client = case.tracking.client

    def scored(tasks: list[str], right: dict[str, int]) -> tuple[str, dict[str, Any], float]:
        recipe = make_recipe(case.tracking.spec, evaluate={"tasks": tasks})
        with dataclasses.replace(case, recipe=recipe).trial() as log:
            log.log_model(case.checkpoint, weights_sha256=case.weights)
            if tasks:
                log.log_scores(make_scores(right=right))
        written = yaml.safe_load(artifact(case, log.run_id, "recipe.yaml", tmp_path))
        return log.run_id, written["evaluate"], client.get_run(log.run_id).data.metrics["pooled"]

    first = scored(["arithmetic"], {"arithmetic": 6})
    second = scored(["dates"], {"dates": 2})
    # A command without tasks has no scores.
    third = scored([], {})
    again = scored(["arithmetic"], {"arithmetic": 6})
    assert len({run_id for run_id, *_ in (first, second, third, again)}) == 1
    for (_, evaluate, pooled), task, wanted in (
        (first, "arithmetic", 0.75),
        (second, "dates", 0.25),
        (third, "dates", 0.25),
        (again, "arithmetic", 0.75),
    ):
        assert (evaluate["tasks"], pooled) == ([task], wanted)


def test_the_lock_pins_every_parent(case: Case, tmp_path: Path) -> None:
    run_id, _ = case.whole()
    lock = json.loads(artifact(case, run_id, "lock.json", tmp_path))
    assert lock["plan_digest"] == case.digest
    assert lock["recipe_sha256"] == case.recipe.sha256()
    assert list(lock["parents"]) == ["base", "math", "dates"]
    assert lock["parents"]["math"]["sha256"] == case.sources["math"].sha256
    assert lock["parents"]["math"]["run_id"] == case.sources["math"].run_id
    assert lock["parents"]["base"]["revision"] == "abc"
    assert set(lock["versions"]) >= {"python", "torch", "transformers", "mlflow"}


def test_credentials_reach_neither_tags_nor_params_nor_files(case: Case, tmp_path: Path) -> None:
    secret = "s3://key:hunter2@bucket/math?X-Amz-Signature=hunter2"
    recipe = make_recipe(
        case.tracking.spec, sources={"math": {"uri": secret, "weight": 1.0}}, base=None
    )
    case = dataclasses.replace(
        case, recipe=recipe, base=None, sources={"math": make_source("math", uri=secret)}
    )
    with case.trial(plan={"sources": [secret]}) as log:
        log.log_model(case.checkpoint, weights_sha256="0" * 64)
        register_trial(log)
        log_parent(case.tracking, case.sources["math"], make_scores("math"))
    client = case.tracking.client
    for run in client.search_runs([case.tracking.experiment_id]):
        assert "hunter2" not in json.dumps(run.data.to_dictionary())
    for model in client.search_logged_models([case.tracking.experiment_id]):
        assert "hunter2" not in json.dumps([model.params, model.tags])
    folder = client.download_artifacts(log.run_id, "", str(tmp_path))
    for path in Path(folder).rglob("*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes(), path


def test_hooks_are_not_logged_and_stay_with_who_promotes(case: Case, tmp_path: Path) -> None:
    hooks = {"webhook": "https://hooks.example/T0/hunter2", "command": ["notify", "hunter2"]}
    recipe = make_recipe(case.tracking.spec, promote={"margin": 0.1, "hooks": hooks})
    with dataclasses.replace(case, recipe=recipe).trial() as log:
        log.log_model(case.checkpoint, weights_sha256="0" * 64)
    client = case.tracking.client
    assert "hunter2" not in json.dumps(client.get_run(log.run_id).data.to_dictionary())
    for path in Path(client.download_artifacts(log.run_id, "", str(tmp_path))).rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
    logged = Recipe.from_dict(read_recipe(case.tracking, log.run_id))
    assert logged.promote == PromoteSpec(margin=0.1)


def test_a_resumed_trial_keeps_its_first_parameters_and_takes_other_uris(case: Case) -> None:
    with pytest.raises(ValueError, match="stop"), case.trial():
        raise ValueError("stop")
    moved = dict(case.sources, math=dataclasses.replace(case.sources["math"], uri="/new/math"))
    recipe = make_recipe(
        case.tracking.spec,
        sources={"math": {"uri": "/new/math", "weight": 0.5}, "dates": {"uri": "/checkpoints/d"}},
    )
    case = dataclasses.replace(case, sources=moved, recipe=recipe)
    run_id, _ = case.whole()
    params = case.tracking.client.get_run(run_id).data.params
    assert params["sources.math.uri"] == "runs:/math"


def test_a_trial_of_a_search_is_nested_below_its_run(case: Case) -> None:
    with search_run(case.tracking, "soup", "d" * 64, {"strategy": "greedy_soup"}) as search:
        run_id, _ = case.whole(parent_run_id=search.run_id)
    tags = case.tracking.client.get_run(run_id).data.tags
    assert tags["mlflow.parentRunId"] == search.run_id


def test_a_trial_that_was_run_by_itself_first_is_nested_by_the_search_that_finds_it(
    case: Case,
) -> None:
    run_id, _ = case.whole()
    parents = []
    for digest in "de":
        with search_run(case.tracking, "soup", digest * 64, {}) as search:
            assert case.whole(parent_run_id=search.run_id)[0] == run_id
        parents.append(search.run_id)
    tags = case.tracking.client.get_run(run_id).data.tags
    assert tags["mlflow.parentRunId"] == parents[0]


def test_other_questions_later_are_added_to_the_finished_trial(case: Case) -> None:
    run_id, _ = case.whole()
    with case.trial() as log:
        assert log.complete
        log.log_model(case.checkpoint, case.weights)
        log.log_scores(make_scores(right={"units": 2}))
    metrics = case.tracking.client.get_run(run_id).data.metrics
    assert metrics["units/acc"] == 0.25
    assert metrics["arithmetic/acc"] == 0.75


def test_confirm_scores_are_added_to_a_trial_by_its_run(case: Case) -> None:
    run_id, _ = case.whole()
    reopen(case.tracking, run_id).log_scores(make_scores(part="confirm", right={"dates": 2}))
    run = case.tracking.client.get_run(run_id)
    assert run.data.metrics["confirm/dates/acc"] == 0.25
    assert run.data.metrics["dates/acc"] == 0.5
    assert run.info.status == "FINISHED"


def test_only_a_trial_can_be_reopened(case: Case) -> None:
    training = case.sources["math"].run_id
    with pytest.raises(TrackingError, match=f"run {training} is no mergeops trial"):
        reopen(case.tracking, training)


def test_scores_and_versions_need_the_model_first(case: Case) -> None:
    with case.trial() as log:
        with pytest.raises(TrackingError, match="has no model yet; log it before its scores"):
            log.log_scores(make_scores())
        with pytest.raises(TrackingError, match="has no model yet; log it before registering"):
            register_trial(log)


def test_a_model_that_was_deleted_is_named(case: Case) -> None:
    run_id, _ = case.whole()
    model_id = own_tags(case.tracking.client.get_run(run_id).data.tags)["mergeops.model_id"]
    case.tracking.client.delete_logged_model(model_id)
    with pytest.raises(TrackingError, match=f"model {model_id} of run {run_id} was deleted"):
        case.whole()


def test_a_deleted_run_is_logged_anew_with_a_version_of_its_own(case: Case) -> None:
    first, _ = case.whole()
    case.tracking.client.delete_run(first)
    second, version = case.whole()
    assert second != first
    assert version == 2


def test_the_page_shows_result_lineage_card_and_next_step(case: Case, tmp_path: Path) -> None:
    parents = {
        "base": make_scores("base", right={"arithmetic": 2, "dates": 2}),
        "math": make_scores("math", right={"arithmetic": 6, "dates": 2}),
    }
    board = leaderboard_of({"task_arithmetic density=0.5": make_scores()}, parents)
    with case.trial() as log:
        log.log_model(case.checkpoint, weights_sha256="0" * 64)
        log.log_scores(make_scores())
        log_leaderboard(log, board, standing_of(make_scores(), parents))
        register_trial(log)
    client = case.tracking.client
    note = client.get_run(log.run_id).data.tags["mlflow.note.content"]
    verdict, _, what, *_ = note.splitlines()
    assert verdict.startswith(
        "**Not shown to be better than the best parent math: +0.125 [-0.093, +0.360].** "
        "**Better than the base: +0.375 ["
    )
    assert what == (
        "A **task_arithmetic** merge of math (weight 0.5) and dates (weight 0.25), registered as "
        "`models:/skills/1`. Score on dev: **0.625 [0.386, 0.815]**."
    )
    training = client.get_run(case.sources["math"].run_id)
    link = f"#/experiments/{training.info.experiment_id}/runs/{training.info.run_id}"
    assert f"[math lr=1e-4]({link}) FAILED" in note
    assert "`mergeops promote skills --version 1`" in note
    svg = artifact(case, log.run_id, "lineage.svg", tmp_path)
    assert "FAILED" in svg and "weight 0.25" in svg and "skills version 1" in svg
    card = artifact(case, log.run_id, "model_card.md", tmp_path)
    assert "base_model_relation: merge" in card and "0.750 [0.409, 0.929]" in card
    assert "0.625" in artifact(case, log.run_id, "leaderboard.md", tmp_path)
    assert json.loads(artifact(case, log.run_id, "leaderboard.json", tmp_path))["part"] == "dev"
    plot = Path(client.download_artifacts(log.run_id, "plots/scores.png", str(tmp_path)))
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_merge_below_its_parent_is_not_sent_to_the_gate(case: Case) -> None:
    parents = {"math": make_scores("math", right={"arithmetic": 8, "dates": 8})}
    with case.trial() as log:
        log.log_model(case.checkpoint, case.weights)
        log.log_scores(make_scores())
        board = leaderboard_of({log.name: make_scores()}, parents)
        log_leaderboard(log, board, standing_of(make_scores(), parents))
        register_trial(log)
    note = case.tracking.client.get_run(log.run_id).data.tags["mlflow.note.content"]
    assert note.startswith("**Worse than the best parent math: -0.375 [")
    assert "mergeops promote" not in note
    assert "try another method" in note


def test_a_reader_of_a_run_sees_what_it_merges_and_what_came_of_it(case: Case) -> None:
    parents = {"math": make_scores("math", right={"arithmetic": 6, "dates": 2})}
    with case.trial() as log:
        log.log_model(case.checkpoint, case.weights)
        log.log_scores(make_scores())
        board = leaderboard_of({log.name: make_scores()}, parents)
        log_leaderboard(log, board, standing_of(make_scores(), parents))
        register_trial(log)
    tags = case.tracking.client.get_run(log.run_id).data.tags
    # MLflow's pages show no tag that begins with "mlflow.".
    assert {tag: value for tag, value in tags.items() if not tag.startswith("mlflow.")} == {
        "mergeops.role": "merge",
        "mergeops.method": "task_arithmetic",
        "mergeops.sources": "math 0.5, dates 0.25",
        "mergeops.score": "0.625 [0.386, 0.815] on dev",
        "mergeops.difference": "+0.125 [-0.093, +0.360] to math",
        "mergeops.verdict": "not shown",
    }


def test_runs_that_an_earlier_version_logged_are_found_and_read(case: Case) -> None:
    run_id, _ = case.whole()
    client, place = case.tracking.client, case.tracking.experiment_id
    own = "mlflow.mergeops."
    # Version 0.1 had all its tags in the open, but for one a parent.
    for run in client.search_runs([place]):
        for tag, value in run.data.tags.items():
            if tag.startswith(own) and not tag.startswith(f"{own}parent."):
                client.set_tag(run.info.run_id, tag.removeprefix("mlflow."), value)
                client.delete_tag(run.info.run_id, tag)
    before = client.search_runs([place])
    assert case.whole()[0] == run_id
    assert len(client.search_runs([place])) == len(before)
    scored = {each.name: each.origin.weights_sha256 for each in scored_runs(case.tracking)}
    assert scored["task_arithmetic density=0.5"] == case.weights
    assert find_family(case.tracking, f"runs:/{run_id}").sha256 == case.weights


def test_a_merge_that_is_to_be_no_version_has_its_page_and_none(case: Case) -> None:
    with case.trial() as log:
        log.log_model(case.checkpoint, case.weights)
        log_unregistered(log)
    client = case.tracking.client
    run = client.get_run(log.run_id)
    assert (run.info.status, own_tags(run.data.tags)["mergeops.complete"]) == ("FINISHED", "true")
    note = run.data.tags["mlflow.note.content"]
    assert "not registered." in note and "score it with `evaluate.tasks=[...]`" in note
    assert client.search_registered_models() == []


def test_a_training_run_that_is_gone_does_not_stop_the_page(case: Case) -> None:
    gone = {"math": make_source("math", run_id="0" * 32), "dates": case.sources["dates"]}
    case = dataclasses.replace(case, sources=gone)
    run_id, _ = case.whole()
    client = case.tracking.client
    with case.trial() as log:
        log.log_model(case.checkpoint, case.weights)
        register_trial(log)
    assert f"`{'0' * 32}`" in client.get_run(run_id).data.tags["mlflow.note.content"]


def test_nothing_is_printed(case: Case, capfd: Any) -> None:
    capfd.readouterr()
    case.whole()
    assert capfd.readouterr() == ("", "")
