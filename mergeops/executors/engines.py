"""Executors by name: files of this package and plug-ins, and opening one as a recipe says."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from mergeops.errors import ConfigError
from mergeops.executors.executor import Executor
from mergeops.executors.launcher import Launcher
from mergeops.executors.units import Needs
from mergeops.recipe import EXECUTOR_PLUG_INS, ExecutorSpec, parse_size

OWN = {"local": "local_processes", "ray": "ray", "slurm": "slurm"}
"""Executor -> its file here."""
LaunchFunction = Callable[[ExecutorSpec, Any, int | None], Launcher]
"""``launcher(spec, parameters, memory)``: memory is ``spec.memory`` in bytes."""


class Engine(NamedTuple):
    """A registered executor."""

    launcher: LaunchFunction
    """Raises ConfigError where the engine is not there; no worker is started yet."""
    parameters: type[Any]
    """A frozen dataclass; every field has a default."""
    script: Callable[[ExecutorSpec, Any, int | None], str] | None = None
    """A script that starts a command which uses the executor, where the engine runs such."""


_REGISTRY: dict[str, Engine] = {}


def executor(
    name: str,
    parameters: type[Any],
    *,
    script: Callable[[ExecutorSpec, Any, int | None], str] | None = None,
) -> Callable[[LaunchFunction], LaunchFunction]:
    """Register a function that makes launchers, by the name that ``executor=NAME`` takes.

    Args:
        name: of the executor.
        parameters: the dataclass of what ``executor.KEY=VALUE`` may set beside the common keys.
        script: ``script(spec, parameters, memory)`` writes what submits a whole command, where
            the engine takes such.
    """

    def register(launcher: LaunchFunction) -> LaunchFunction:
        _REGISTRY[name] = Engine(launcher, parameters, script)
        return launcher

    return register


def engine_of(name: str) -> Engine:
    """The executor of that name.

    Raises:
        ConfigError: there is none, or the plug-in cannot be imported.
    """
    if name not in _REGISTRY and name in OWN:
        importlib.import_module(f"mergeops.executors.{OWN[name]}")
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
    return Executor(_launcher(spec), needs, patience_s=spec.patience_s, stage=spec.stage)


def examine_executor(spec: ExecutorSpec) -> str:
    """What is there for a recipe's ``executor``; nothing is started.

    Raises:
        ConfigError: as ``open_executor``.
    """
    launcher = _launcher(spec)
    launcher.close()
    workers = "1 worker" if launcher.workers == 1 else f"{launcher.workers} workers"
    return f"{spec.name}: {workers}, who find this machine at {launcher.address}"


def script_of(spec: ExecutorSpec) -> str | None:
    """The script that submits a command as a job of the executor's engine; None where the engine
    takes none."""
    engine = engine_of(spec.name)
    if engine.script is None:
        return None
    return engine.script(spec, spec.read(engine.parameters), _memory(spec))


def _launcher(spec: ExecutorSpec) -> Launcher:
    engine = engine_of(spec.name)
    return engine.launcher(spec, spec.read(engine.parameters), _memory(spec))


def _memory(spec: ExecutorSpec) -> int | None:
    return parse_size("executor.memory", spec.memory) if spec.memory else None
