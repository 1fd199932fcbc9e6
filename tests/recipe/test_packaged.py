"""A recipe file over the packaged defaults without Hydra: the same as with it, or left to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mergeops.recipe.composition import _compose_plain
from mergeops.recipe.packaged import layered

TIES = {"name": "ties", "density": 0.3, "normalize": True}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"method": TIES, "sources": {"a": {"uri": "x", "weight": 1}, "b": "y"}, "base": "z"},
        {"method": {"density": 1e-05}, "dtype": {"save": "float16"}, "seed": 7, "name": None},
        {"tokenizer": {"tokens": {"<|x|>": {"source": "a", "force": False}}}, "only": ["a"]},
        {"rules": [{"match": "*.mlp.*", "weight": {"a": [0.0, 0.5]}}], "modules": {"m": {}}},
        # What replaces a mapping, and what a mapping replaces.
        {"output": None, "evaluate": "quick", "search": {"grid": {"k": [1, 2]}}, "base": {"x": 1}},
        {"evaluate": {"tasks": ["t"], "metrics": {"t": "acc"}}, "promote": {"against": ["base"]}},
        {"executor": {"workers": 3}, "tracking": {"uri": "$HOME {x} $ {y}"}, "unknown": "?"},
        {"path_map": {"/a.b/c": "/d e"}, "sources": {"a": "runs:/1?x=1&y='2'#\\z"}},
    ],
)
def test_a_file_is_layered_as_hydra_layers_it(content: dict[str, Any]) -> None:
    assert layered(content) == _compose_plain(["recipe=from_file"], None, content, {})


@pytest.mark.parametrize(
    "content",
    [
        {"defaults": [{"method": "ties"}]},
        {"sources": {"a": "${name}"}},
        {"rules": [{"match": "\\${x}"}]},
        {"base": "???"},
        {"sources": {1: "a"}},
    ],
)
def test_what_means_something_to_hydra_is_left_to_it(content: dict[str, Any]) -> None:
    assert layered(content) is None


def test_a_merge_of_a_recipe_file_without_overrides_imports_no_hydra(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("sources: {a: ./a, b: ./b}\nmethod: {name: slerp}\n")
    script = (
        "import sys, click.testing as t; from mergeops.cli.main import cli;"
        "done = t.CliRunner().invoke(cli, ['merge', 'r.yaml', 'out', '--device', 'cpu', '--cfg',"
        "'job']); print(done.exit_code, 'device: cpu' in done.output, 'hydra' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["0", "True", "False"]
