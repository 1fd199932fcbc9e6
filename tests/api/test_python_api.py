"""The Python API: its examples run, its words and results are those of the command line."""

from __future__ import annotations

import doctest
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.forked_commands import forked_commands

import mergeops
from mergeops import api
from mergeops.api import merging, registered
from mergeops.api.recipes import as_recipe
from mergeops.cli.main import COMMANDS
from mergeops.errors import ConfigError

FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL


@pytest.fixture(scope="module")
def models(tiny_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a base and two fine-tunes."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(path=folder / "base")
    tiny_llama(like=base, seed=1, path=folder / "math")
    tiny_llama(like=base, seed=2, path=folder / "code")
    return folder


@pytest.fixture
def desk(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory of a user, with ``models`` in it."""
    shutil.copytree(models, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.slow
def test_the_examples_of_the_documentation_run_one_after_the_other(desk: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{desk / 'mlflow.db'}")
    run = client.create_run(client.create_experiment("finetunes"), run_name="math")
    # What a training that crashed after its first checkpoint leaves.
    shutil.copytree(desk / "models" / "math", desk / "trained" / "checkpoint-1")
    client.log_param(run.info.run_id, "output_dir", str(desk / "trained"))
    client.set_terminated(run.info.run_id, "FAILED")
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    found = [test for module in (api, merging, registered) for test in finder.find(module)]
    # In the order of the page: a merge is verified and looked up after it was made.
    examples = sorted(
        (test for test in found if test.examples), key=lambda t: (t.filename, t.lineno)
    )
    for example in examples:
        runner.run(example)
    assert len(examples) == 1 + len(api.__all__) - len({"Verification"})
    assert runner.summarize(verbose=False).failed == 0


def test_every_word_of_the_api_is_a_word_of_the_command_line() -> None:
    words = {name for name in api.__all__ if name[0].islower()}
    assert words <= set(COMMANDS)
    assert {"merge", "run", "search", "adopt", "inspect", "compare", "promote", "rollback"} <= words
    assert {"lineage", "verify"} <= words


@pytest.mark.parametrize("name", ["Recipe", "MergeReadyCallback", *api.__all__])
def test_the_face_hands_out(name: str) -> None:
    assert name in mergeops.__all__
    assert name in dir(mergeops)
    assert callable(getattr(mergeops, name))


def test_a_word_that_is_a_room_too_can_be_called_whatever_was_imported_first(
    tmp_path: Path,
) -> None:
    program = (
        "import mergeops.search, mergeops.lineage, mergeops\n"
        "from mergeops.search import run_search\n"
        "import mergeops.search as room\n"
        "assert room.run_search is run_search\n"
        "assert callable(mergeops.search) and callable(mergeops.lineage)\n"
        "try:\n"
        "    mergeops.search({'sources': {'a': 'nowhere'}})\n"
        "except mergeops.errors.ConfigError as error:\n"
        "    print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert "evaluate.tasks is empty" in ran.stdout, ran.stderr


def test_a_recipe_is_a_mapping_a_file_a_name_or_a_recipe(desk: Path) -> None:
    content = {"sources": {"math": "models/math", "code": {"uri": "models/code", "weight": 2.0}}}
    (desk / "conf" / "recipe").mkdir(parents=True)
    text = json.dumps(content)
    (desk / "mean.yaml").write_text(text)
    (desk / "conf" / "recipe" / "named.yaml").write_text(f"# @package _global_\n{text}\n")
    by_mapping = as_recipe(content, (), None)
    assert as_recipe("mean.yaml", (), None).to_dict() == by_mapping.to_dict()
    assert as_recipe(desk / "mean.yaml", (), None).to_dict() == by_mapping.to_dict()
    assert as_recipe("named", (), "conf").to_dict() == by_mapping.to_dict()
    assert as_recipe(by_mapping, (), None) is by_mapping
    changed = as_recipe(content, ["method=ties", "method.density=0.3"], None)
    assert changed.method.name == "ties"


def test_a_recipe_that_is_read_takes_no_overrides(desk: Path) -> None:
    recipe = as_recipe({"sources": {"math": "models/math"}}, (), None)
    with pytest.raises(ConfigError, match="a Recipe is read already"):
        mergeops.merge(recipe, "out", overrides=["method=ties"])
    with pytest.raises(ConfigError, match="a Recipe is read already"):
        mergeops.merge(recipe, "out", config_dir="conf")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sources": [1]}, r"sources is \[1\]; it takes a mapping"),
        ({"method": [1]}, r"method is \[1\]; it takes a mapping"),
        ({"rules": {"a": 1}}, r"rules is \{'a': 1\}; it takes a list"),
        ({"sauces": {}}, "unknown key sauces; did you mean 'sources'"),
        ({"name": object()}, "the recipe is no mapping of plain values: .*object"),
    ],
)
def test_a_wrong_mapping_is_refused(desk: Path, content: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mergeops.merge(content, "out")


def test_what_is_returned_is_what_the_command_prints(desk: Path) -> None:
    recipe = {"sources": {"math": "models/math", "code": "models/code"}, "method": "slerp"}
    (desk / "recipe.yaml").write_text(json.dumps(recipe))
    merged = mergeops.merge("recipe.yaml", "out")
    for words, result in (
        (["merge", "recipe.yaml", "out"], mergeops.merge(recipe, "out")),
        (["verify", "out"], mergeops.verify("out")),
        (["inspect", "recipe.yaml", "--no-rank"], mergeops.inspect(recipe, with_ranks=False)),
    ):
        ran = forked_commands().run(desk, (*words, "--json", "-q"), os.environ)
        printed = json.loads(ran.stdout)
        printed.pop("plots", None)
        assert printed == json.loads(json.dumps(result.to_dict())), words
    assert merged.checkpoint == Path("out")
