"""What a job may be: each refusal says what, and what would allow it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import click
import pytest

from mergeops.cli.main import cli
from mergeops.errors import ConfigError
from mergeops.service.allowed import checked_request
from mergeops.service.job_commands import COMMANDS
from mergeops.service.operator_config import ServiceConfig, read_config

RECIPE = "base: models/base\nsources: {a: models/a, b: models/b}\nmethod: ties\n"
MIXTURE = """base_model: models/base
gate_mode: random
experts:
  - source_model: models/a
  - source_model: {second}
"""


def check(directory: Path, command: str, *words: str, **config: object) -> tuple[str, ...]:
    made = dataclasses.replace(ServiceConfig(), **config)  # type: ignore[arg-type]
    return checked_request(command, words, made, directory).words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("approve", "skills"), "'approve' is no command that a job may be"),
        (("serve",), "'serve' is no command that a job may be"),
        (("gc",), "'gc' is no command that a job may be"),
        (("run", "trust_remote_code=true"), "trust_remote_code is true"),
        (("run", "promote.hooks.command=[sh]"), "promote.hooks is set"),
        (("run", "promote.hooks.webhook=http://x"), "promote.hooks is set"),
        (("run", "tracking.uri=http://elsewhere"), "tracking.uri is set"),
        (("run", "tracking.registry_uri=http://elsewhere"), "tracking.registry_uri is set"),
        (("run", "--config-dir", "conf"), "may not have the option --config-dir"),
        (("run", "--config-dir=conf"), "may not have the option --config-dir"),
        (("run", "--debug"), "may not have the option --debug"),
        (("run", "base=/etc"), "base: /etc lies outside ."),
        (("run", "base=../other"), "base: ../other lies outside ."),
        (("run", "base=file:///etc"), "base: /etc lies outside ."),
        (("run", "base=file://localhost/etc"), "base: /etc lies outside ."),
        (("run", "base='~/x'"), "base: ~/x lies outside ."),
        (("run", "base=s3://bucket/x"), "base: s3://bucket/x begins with s3:"),
        (("run", "base=http://169.254.169.254/x"), "begins with http:"),
        (("run", "+sources.a.uri=/etc/passwd"), "sources.a.uri: /etc/passwd lies outside ."),
        (("run", "output.dir=/tmp/elsewhere"), "output.dir: /tmp/elsewhere lies outside ."),
        (("run", "+path_map={/a: /etc}"), "path_map./a: /etc lies outside ."),
        (("run", "evaluate.include_path=tasks"), "evaluate.include_path is tasks: a task's YAML"),
        (("run", "evaluate.tasks=[mine.yaml]"), "evaluate.tasks is mine.yaml: a task's YAML"),
        (("run", "evaluate.tasks=[/etc/motd.txt]"), "evaluate.tasks: /etc/motd.txt lies outside ."),
        (("run", "name=${oc.env:HOME}"), "hold no interpolation"),
        (("run", "/etc/recipe.yaml"), "/etc/recipe.yaml lies outside ."),
        (("merge", "recipe.yaml", "/etc/out"), "/etc/out lies outside ."),
        (("merge", "recipe.yaml", "link/out"), "link/out lies outside ."),
        (("recover", "x", "y", "--base=/etc"), "/etc lies outside ."),
        (("adopt", "--experiment", "x", "--recipe", "../r.yaml"), "../r.yaml lies outside ."),
        (("adopt", "--experiment"), "adopt: --experiment takes a value"),
        (("adopt", "--path-map", "a=b"), "may not have the option --path-map"),
        (("verify", "a", "b"), "verify: unexpected word 'b'"),
        (("moe", "/etc/moe.yaml", "out"), "/etc/moe.yaml lies outside ."),
        (("moe", "moe.yaml", "/etc/out"), "/etc/out lies outside ."),
        (("moe", "moe.yaml", "out"), "moe.yaml: experts[1].source_model: /etc/b lies outside ."),
        (("moe", "hub.yaml", "out"), "hub.yaml: s3://bucket/a begins with s3:"),
        (("moe", "none.yaml", "out"), "none.yaml"),
        (("moe", "moe.yaml", "out", "more"), "moe: unexpected word 'more'"),
        (("moe", "moe.yaml", "out", "--debug"), "may not have the option --debug"),
        (("extract", "a", "s3://bucket/b", "out"), "s3://bucket/b begins with s3:"),
        (("extract", "a", "b", "../out"), "../out lies outside ."),
        (("extract", "a", "b", "out", "trust_remote_code=true"), "extract: unexpected word"),
        (("transplant", "a", "/etc", "out"), "/etc lies outside ."),
        (("transplant", "a", "b", "link/out"), "link/out lies outside ."),
        (("transplant", "a", "b", "out", "--trust"), "may not have the option --trust"),
        (("promote", "skills", "--force"), "may not have the option --force"),
        (("promote", "skills", "promote.approval=false"), "a job proposes, and people approve"),
        (("run", "-m", "seed=range(1,1000000000)"), "lists few values one by one"),
        (("run", "-m", f"seed={','.join(map(str, range(99)))}"), "-m makes 99 combinations"),
        (("run", "-m", "seed=1,2", "trust_remote_code=true,false"), "trust_remote_code is true"),
        (("run", "seed=x"), "seed is 'x'"),
        (("run", "methud=ties"), "methud"),
        (("run", *["seed=1"] * 501), "at most 500 of 20000 are allowed"),
    ],
)
def test_what_is_not_allowed_is_said(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "moe.yaml").write_text(MIXTURE.format(second="/etc/b"))
    (tmp_path / "hub.yaml").write_text(MIXTURE.format(second="s3://bucket/a"))
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(tmp_path, *words)


def test_what_an_operator_allows_is_allowed(tmp_path: Path) -> None:
    check(tmp_path, "run", "trust_remote_code=true", trust_remote_code=True)
    check(tmp_path, "run", "base=s3://bucket/x", schemes=("s3",))
    check(tmp_path, "run", "base=/models/x", roots=("/models", "."))
    check(tmp_path, "run", "evaluate.include_path=tasks", task_dirs=("tasks",))
    check(tmp_path, "run", "tracking.uri=http://m:1", tracking_uris=("http://m:1",))
    with pytest.raises(ConfigError, match="'run' is no command that a job may be; allowed: search"):
        check(tmp_path, "run", commands=("search",))


def test_models_are_made_of_what_an_operator_allows(tmp_path: Path) -> None:
    file = tmp_path / "moe.yaml"
    file.write_text(MIXTURE.format(second="models/b"))
    check(tmp_path, "moe", "moe.yaml", "out", "--seed", "3")
    outside = tmp_path.parent / f"{tmp_path.name}-models"
    outside.mkdir()
    file.write_text(MIXTURE.format(second=outside))
    check(tmp_path, "moe", "moe.yaml", "out", roots=(".", str(outside)))
    check(tmp_path, "extract", "hf://org/base", "runs:/1/model", "out", "--rank", "8")
    check(tmp_path, "transplant", "models/a", "models/b", "out", "--method", "omp", "--k=8")


def test_another_mixture_is_another_job(tmp_path: Path) -> None:
    file, ids = tmp_path / "moe.yaml", set[str]()
    for second in ("models/b", "models/b", "models/c"):
        file.write_text(MIXTURE.format(second=second))
        ids.add(checked_request("moe", ["moe.yaml", "out"], ServiceConfig(), tmp_path).id)
    assert len(ids) == 2


def test_the_operators_own_config_is_trusted_and_a_job_cannot_change_it(tmp_path: Path) -> None:
    hooks = tmp_path / "conf" / "promote" / "default.yaml"
    hooks.parent.mkdir(parents=True)
    hooks.write_text("hooks: {command: [./notify]}\n")
    check(tmp_path, "run", config_dir="conf")
    with pytest.raises(ConfigError, match="promote.hooks is set"):
        check(tmp_path, "run", "promote.hooks.command=[sh]", config_dir="conf")


def test_a_promotion_only_proposes(tmp_path: Path) -> None:
    assert check(tmp_path, "promote", "skills") == ("skills", "promote.approval=true")


def test_a_recipe_file_is_looked_through_and_its_content_names_the_job(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    first = checked_request("run", ["recipe.yaml"], ServiceConfig(), tmp_path)
    assert (
        first.id == checked_request("run", ["recipe.yaml", "--json"], ServiceConfig(), tmp_path).id
    )
    file.write_text(RECIPE + "seed: 1\n")
    assert checked_request("run", ["recipe.yaml"], ServiceConfig(), tmp_path).id != first.id
    file.write_text(RECIPE + "trust_remote_code: true\n")
    with pytest.raises(ConfigError, match="trust_remote_code is true"):
        checked_request("run", ["recipe.yaml"], ServiceConfig(), tmp_path)


def test_every_option_that_a_job_may_have_is_one_of_the_command() -> None:
    context = click.Context(cli)
    for name, spec in COMMANDS.items():
        command = cli.get_command(context, name.split()[0])
        if isinstance(command, click.Group):
            command = command.get_command(context, name.split()[1])
        assert command is not None, name
        known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        assert {*spec.valued, *spec.flags, *spec.paths, "--json"} <= known, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rots: [.]", "unknown key rots; did you mean 'roots'?"),
        ("roots: 3", "roots is 3; it takes a list"),
        ("max_body_kb: 0", "max_body_kb is 0; allowed: from 1 to 65536"),
        ("a: [", "is no YAML"),
    ],
)
def test_an_operators_file_is_read_strictly(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(file)
