"""Every command line in the documentation is one that mergeops takes: command, options and keys."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mergeops.cli.main import cli
from mergeops.recipe import GROUPS, Recipe, keys
from mergeops.recipe.composition import compose, expand_sweep
from mergeops.search import parameter_types, with_strategy

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
COMMAND = re.compile(r"^ {4,}(?:\$ |- run: |srun )*(mergeops [^|#\n]+)$", re.MULTILINE)


def lines() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for match in COMMAND.finditer(text):
            yield page, match[1].partition(" > ")[0].strip()


def is_known(word: str) -> bool:
    """Whether an override's key, or a group's name, is one that a recipe has."""
    key = word.lstrip("~+").partition("=")[0]
    if key.startswith(
        ("sources.", "method.", "search.", "rules", "promote.", "path_map", "executor.")
    ):
        return key.split(".")[0] in {*Recipe.keys(), *GROUPS}
    return key in {*keys(), *GROUPS, "strategy"} or key.split(".")[0] in ("tokenizer",)


@pytest.mark.parametrize(("page", "line"), list(lines()))
def test_a_command_of_the_documentation_is_one(page: str, line: str) -> None:
    if "<TAB>" in line:
        return
    name, *words = shlex.split(line)[1:]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"{page}: no command {name}"
    # Refuses unknown options and missing arguments.
    context = command.make_context(name, words)
    overrides = [word for word in context.params.get("overrides") or () if "=" in word]
    assert [word for word in overrides if not is_known(word)] == [], page
    # Quotes and brackets are as Hydra reads them.
    OverridesParser.create().parse_overrides(overrides)


RUNS = """# @package _global_
base: models/base
sources:
  math: {uri: models/math}
  code: {uri: models/code}
"""
ANSWERS = [line for page, line in lines() if page == "docs/faq.md" and "--config-dir" in line]


@pytest.mark.parametrize("line", ANSWERS)
def test_a_question_is_answered_by_settings_that_fit_each_other(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf/recipe").mkdir(parents=True)
    Path("conf/recipe/runs.yaml").write_text(RUNS)
    name, *words = shlex.split(line)[1:]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    chosen = command.make_context(name, words).params.get("overrides") or ()
    for combination in expand_sweep(with_strategy(chosen)):
        recipe = compose(combination, config_dir=Path("conf"), strategies=parameter_types())
        # A method's parameters are checked where it is known.
        assert recipe.method.parameters is not None


def test_the_pages_have_commands() -> None:
    assert len(list(lines())) > 40
