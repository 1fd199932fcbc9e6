"""What extract, moe and transplant share: the options of the log, and what is said of the trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import click

from mergeops.cli.console import echo
from mergeops.cli.options import AS_JSON, CONFIG_DIR, OVERRIDES, Call, options, progress_options
from mergeops.cli.run import print_trials
from mergeops.derived import Derived, ToolLog

_LOG = click.option(
    "--log", "is_wanted", is_flag=True, help="Make it a tracked trial, as `mergeops run` does."
)
_EXPERIMENT = click.option("--experiment", help="Of --log: the same as tracking.experiment=NAME.")
_REGISTER = click.option(
    "--register", help="Of --log: a version of this registered model, with scores or without."
)


def tool_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that tools share; the command gets a ``Call``, a ``ToolLog`` and its own."""

    def with_log(call: Call, **values: Any) -> None:
        names = {field.name for field in dataclasses.fields(ToolLog)}
        shared = {name: values.pop(name) for name in tuple(values) if name in names}
        log = ToolLog(overrides=call.overrides, config_dir=call.config_dir, **shared)
        command(call, log, **values)

    with_log.__doc__ = command.__doc__
    with_log.__name__ = command.__name__
    wanted = (OVERRIDES, _LOG, _EXPERIMENT, _REGISTER, CONFIG_DIR, AS_JSON, progress_options)
    return options(*wanted)(with_log)


def show_derived(call: Call, made: Derived[Any], text: str) -> None:
    """Print what was made, and its trial where there is one."""

    def show(_: Any) -> None:
        echo(text)
        if made.trial is not None:
            print_trials(call, [made.recipe], [made.trial])

    call.show(made, show)
