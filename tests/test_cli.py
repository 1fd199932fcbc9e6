"""The command line: its options are a contract, its errors are one line with an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

from mergeops import cli

FROZEN = {
    "adopt": "--dry-run --experiment --filter --force --path-map --recipe --register --tracking-uri"
    " --json --quiet --debug",
    "compare": "OVERRIDES --config-dir --experiment --part --reference --json --debug",
    "doctor": "OVERRIDES --config-dir --json --debug",
    "convert": "CONFIG_FILE OUT --force --compat --json --debug",
    "inspect": "OVERRIDES --plot --no-rank --config-dir --json --quiet --debug",
    "merge": "RECIPE_FILE OUT OVERRIDES --device --seed --compat --config-dir --cfg --json"
    " --quiet --debug",
    "methods": "NAME --json --debug",
    "promote": "NAME OVERRIDES --version --expect-current --force --reason --config-dir --json"
    " --quiet --debug",
    "rollback": "NAME OVERRIDES --config-dir --json --debug",
    "run": "OVERRIDES --multirun --config-dir --cfg --json --quiet --debug",
    "search": "OVERRIDES --config-dir --cfg --json --quiet --debug",
    "verify": "WHERE --json --debug",
}


def spelled(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        return next(o for o in parameter.opts if o.startswith("--"))
    assert parameter.name is not None
    return parameter.name.upper()


def test_the_options_of_every_command_are_as_published() -> None:
    found = {name: {spelled(p) for p in c.params} for name, c in cli.cli.commands.items()}
    assert found == {name: set(words.split()) for name, words in FROZEN.items()}


def mergeops(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mergeops", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_an_error_is_one_line_on_stderr_and_the_exit_code_of_its_class(tmp_path: Path) -> None:
    done = mergeops("run", "methd=ties", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "mergeops: error: unknown key methd; did you mean 'method'? allowed: base, compat, dtype, "
        "evaluate, file, merges, method, missing, modules, name, only, output, path_map, promote, "
        "recipe, rules, search, seed, slices, sources, tied_head, tokenizer, tracking, "
        "trust_remote_code"
    ]


def test_debug_adds_the_traceback(tmp_path: Path) -> None:
    done = mergeops("run", "methd=ties", "--debug", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


def test_an_unknown_option_is_a_usage_error(tmp_path: Path) -> None:
    done = mergeops("run", "--jsno", cwd=tmp_path)
    assert done.returncode == 2
    assert "--jsno" in done.stderr


def test_cfg_prints_the_whole_recipe_and_does_nothing(tmp_path: Path) -> None:
    done = mergeops("run", "sources.a.uri=nowhere", "method=linear", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "uri: nowhere" in done.stdout
    assert "confirm_fraction: 0.5" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_methods_explains_one_with_its_paper_and_parameters(tmp_path: Path) -> None:
    done = mergeops("methods", "ties", "--json", cwd=tmp_path)
    (ties,) = json.loads(done.stdout)
    assert ties["paper"] == "https://arxiv.org/abs/2306.01708"
    density = next(p for p in ties["parameters"] if p["name"] == "density")
    assert density["per_source"] is True
    assert "largest by magnitude" in density["about"]
    assert "arxiv.org/abs/2306.01708" in mergeops("methods", "ties", cwd=tmp_path).stdout


def test_methods_lists_all_of_them(tmp_path: Path) -> None:
    text = mergeops("methods", cwd=tmp_path).stdout
    for name in ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"):
        assert name in text


def test_an_unknown_method_is_exit_code_two(tmp_path: Path) -> None:
    done = mergeops("methods", "tise", cwd=tmp_path)
    assert (done.returncode, "did you mean 'ties'" in done.stderr) == (2, True)


def test_a_path_map_without_equals_sign_is_refused(tmp_path: Path) -> None:
    done = mergeops("adopt", "--experiment", "e", "--path-map", "old", cwd=tmp_path)
    assert done.returncode == 2
    assert "--path-map is 'old'; write OLD=NEW" in done.stderr
