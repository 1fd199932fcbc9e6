"""``mergeops init``: from an experiment of training runs to a config directory that runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from mergeops.cli.main import cli
from mergeops.errors import ConfigError
from mergeops.recipe import FirstConf, compose, tasks_in, write_first_conf


@pytest.fixture
def finetunes(
    new_store: str,
    tiny_llama: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A directory with tasks, and two training runs in MLflow, one of which failed."""
    base = tiny_llama()
    client = mlflow.MlflowClient(new_store)
    experiment = client.create_experiment("finetunes")
    for seed, (name, status) in enumerate((("math", "FINISHED"), ("code", "FAILED")), 1):
        run_id = client.create_run(experiment, run_name=name).info.run_id
        client.log_param(run_id, "output_dir", str(tiny_llama(like=base, seed=seed)))
        client.set_terminated(run_id, status)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.yaml").write_text("task: sums\noutput_type: multiple_choice\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store)
    # What another test of this process has set would win over the environment.
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    return tmp_path


def init(*words: str) -> str:
    done = CliRunner().invoke(cli, ["init", *words], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_what_is_written_composes_to_a_recipe_of_the_runs(finetunes: Path) -> None:
    out = init()
    assert "registered model finetunes-merged" in out
    assert "2 of 2 runs of finetunes as sources" in out
    assert "mergeops run --config-dir conf recipe=runs" in out
    recipe = compose(["recipe=runs"], config_dir=Path("conf"))
    assert sorted(recipe.sources) == ["code", "math"]
    assert recipe.tracking.registered_model == "finetunes-merged"
    assert recipe.tracking.experiment == "finetunes-merges"
    assert (recipe.evaluate.tasks, recipe.evaluate.include_path) == (("sums",), "tasks")


def test_the_registered_name_is_the_users(finetunes: Path) -> None:
    shown = json.loads(init("--experiment", "finetunes", "--name", "skills", "--json"))
    assert (shown["registered_model"], shown["sources"], shown["tasks"]) == ("skills", 2, ["sums"])
    assert shown["files"][0] == "conf/tracking/default.yaml"
    with pytest.raises(ConfigError, match=r"registered_model is 'a/b'; MLflow allows"):
        init("--name", "a/b", "--force")


def test_files_that_are_there_are_replaced_by_force_only(finetunes: Path) -> None:
    init()
    init()
    Path("conf/tracking/default.yaml").write_text("# mine\n")
    with pytest.raises(ConfigError, match=r"tracking/default.yaml is there; add --force"):
        init()
    init("--force")


def test_one_of_several_experiments_has_to_be_named(finetunes: Path, new_store: str) -> None:
    mlflow.MlflowClient(new_store).create_experiment("others")
    with pytest.raises(ConfigError, match=r"--experiment is missing: .*others, finetunes"):
        init()


def test_texts_stand_in_where_there_are_no_tasks(tmp_path: Path) -> None:
    for name in ("held.txt", "README.md"):
        (tmp_path / name).write_text("text")
    assert tasks_in(tmp_path) == (str(tmp_path / "held.txt"),)
    (tmp_path / "mine.yaml").write_text("# a comment\ntask: 'mine' # first\ninclude: x\n")
    (tmp_path / "template.yaml").write_text("output_type: multiple_choice\n")
    assert tasks_in(tmp_path) == ("mine",)


def test_without_tasks_the_file_says_what_may_stand_there(tmp_path: Path) -> None:
    _, evaluate = write_first_conf(FirstConf("e", "m", (), None), tmp_path)
    assert "[held.txt]" in evaluate.read_text()
    assert compose(config_dir=tmp_path).evaluate.tasks == ()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        write_first_conf(FirstConf("e", "m", (), None), tmp_path / "file", force=True)
