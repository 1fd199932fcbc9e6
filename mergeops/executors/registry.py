"""Executors by name: files of this package and plug-ins, and opening one as a recipe says."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from mergeops.errors import ConfigError
from mergeops.executors.executor import Executor, Launcher
from mergeops.executors.units import Needs
from mergeops.recipe import EXECUTOR_PLUG_INS, ExecutorSpec, parse_size

OWN = ("local", "ray", "slurm")
LaunchFunction = Callable[[ExecutorSpec, Any, int | None], Launcher]
"""``launcher(spec, parameters, memory)``: memory is ``spec.memory`` in bytes."""


class Engine(NamedTuple):
    """A registered executor."""

    launcher: LaunchFunction
    """Raises ConfigError where the engine is not there; no worker is started yet."""
    parameters: type[Any]
    """A frozen dataclass; every field has a default."""


_REGISTRY: dict[str, Engine] = {}


def executor(name: str, parameters: type[Any]) -> Callable[[LaunchFunction], LaunchFunction]:
    """Register a function that makes launchers, by the name that ``executor=NAME`` takes.

    Args:
        name: of the executor.
        parameters: the dataclass of what ``executor.KEY=VALUE`` may set beside the common keys.
    """

    def register(launcher: LaunchFunction) -> LaunchFunction:
        _REGISTRY[name] = Engine(launcher, parameters)
        return launcher

    return register


def engine_of(name: str) -> Engine:
    """The executor of that name.

    Raises:
        ConfigError: there is none, or the plug-in cannot be imported.
    """
    if name not in _REGISTRY and name in OWN:
        importlib.import_module(f"mergeops.executors.{name}")
    plug_ins = {plug_in.name: plug_in for plug_in in entry_points(group=EXECUTOR_PLUG_INS)}
    if name not in _REGISTRY and name in plug_ins:
        try:
            plug_ins[name].load()
        # A plug-in may fail in any way.
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(
                f"the plug-in {plug_ins[name].value} cannot be imported: {reason}"
            ) from error
    if name not in _REGISTRY:
        known = sorted({*OWN, *plug_ins, *_REGISTRY})
        raise ConfigError(f"executor.name is {name!r}; allowed: {', '.join(known)}")
    return _REGISTRY[name]


def open_executor(spec: ExecutorSpec, needs: Needs | None = None) -> Executor:
    """Open the executor that a recipe names; workers are started when there is work.

    Args:
        spec: the recipe's ``executor``.
        needs: what workers must have before they are given work.

    Raises:
        ConfigError: no such executor, a parameter that it does not take, or its engine is not
            installed or not there.
    """
    engine = engine_of(spec.name)
    memory = parse_size("executor.memory", spec.memory) if spec.memory else None
    launcher = engine.launcher(spec, spec.read(engine.parameters), memory)
    return Executor(launcher, needs, patience_s=spec.patience_s)


def checked(spec: ExecutorSpec) -> ExecutorSpec:
    """The same with every parameter of its engine; raises as ``open_executor`` for its keys."""
    parameters = spec.read(engine_of(spec.name).parameters)
    return replace(spec, parameters=asdict(parameters))
