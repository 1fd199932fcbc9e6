"""What may be written where: the keys of a recipe, and the names that a group has files for."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mergeops import methods
from mergeops.errors import ConfigError
from mergeops.recipe.executor_settings import EXECUTOR_PLUG_INS, ExecutorSpec
from mergeops.recipe.files import GROUPS
from mergeops.recipe.recipe import DtypeSpec, Recipe
from mergeops.recipe.settings import (
    AS,
    EvaluateSpec,
    OutputSpec,
    PromoteSpec,
    TrackingSpec,
)
from mergeops.schema import did_you_mean, key_of_field

HYDRA = {
    "hydra.run": "output.dir is where work is kept",
    "hydra.sweep": "output.dir is where work is kept",
    "hydra.sweeper": "-m runs every combination, `mergeops search strategy=NAME` proposes trials",
    "hydra.launcher": "trials run one after the other, on all devices of output.device and "
    "evaluate.device; start commands side by side, they share what is done",
    "hydra.searchpath": "--config-dir DIR; its files win over the packaged ones",
    "hydra.verbose": "--debug, and --progress=lines",
    "hydra.job_logging": "--progress=json writes progress for programs",
    "hydra.hydra_logging": "--progress=json writes progress for programs",
}
"""What stands in the place of Hydra's own settings."""
SETTINGS = {
    "dtype": DtypeSpec,
    "output": OutputSpec,
    "evaluate": EvaluateSpec,
    "tracking": TrackingSpec,
    "promote": PromoteSpec,
    "executor": ExecutorSpec,
}
CHECKED = {
    "method": ("method", "`mergeops methods NAME` explains one"),
    "search": ("strategy", "`mergeops strategies NAME` explains one"),
    "executor": ("executor", "see docs/clusters.md"),
}
"""Groups whose names are known without reading files -> what messages call them."""
WORDS = {
    "dtype.compute": ("float32", "float64"),
    "dtype.save": ("auto", "bfloat16", "float16", "float32"),
    "evaluate.backend": ("auto", "mergeops", "hf", "vllm"),
    "evaluate.dtype": ("auto", "bfloat16", "float16", "float32"),
    "missing": ("refuse", "leave_out"),
    "output.as": AS,
    "mixed_architectures": ("refuse", "allow"),
    "tied_head": ("refuse", "untie", "tie"),
    "tokenizer.source": ("same", "base", "union"),
    "tracking.register": ("scored", "unscored"),
}
"""Keys that take one of a few words; their dataclasses refuse others."""


def keys(method: str | None = None) -> list[str]:
    """Every key that an override may set, dotted, with those of a method where it is known."""
    found = list(set(Recipe.keys()).difference(SETTINGS, GROUPS))
    for group, settings in SETTINGS.items():
        hints = typing.get_type_hints(settings)
        for f in dataclasses.fields(settings):
            if not dataclasses.is_dataclass(hints[f.name]) and f.name != "parameters":
                found.append(f"{group}.{key_of_field(f.name)}")
    if method in methods.names():
        found += [f"method.{each.name}" for each in methods.get(method).describe()]
    return sorted({*found, *GROUPS, "only"})


def options_of(
    group: str, folders: Iterable[Path], strategies: Iterable[str] = ()
) -> dict[str, bool]:
    """What ``group=NAME`` may name -> whether it is packaged.

    Args:
        folders: the config directories, the packaged one first.
        strategies: those of a search.
    """
    registered = {
        "method": methods.names(),
        "search": sorted(strategies),
        "executor": executor_plug_ins(),
    }
    names = dict.fromkeys(registered.get(group, ()), True)
    for i, folder in enumerate(folders):
        for path in sorted((folder / group).glob("*.yaml")):
            names[path.stem] = i == 0
    return names


def check_option(
    group: str, name: str, folders: Iterable[Path], strategies: Mapping[str, Any]
) -> None:
    """Refuse a method, strategy or executor that there is none of, in our words.

    Raises:
        ConfigError: says what there is.
    """
    known = options_of(group, folders, strategies)
    if name not in known:
        word, more = CHECKED[group]
        raise ConfigError(
            f"{word} is {name!r}; {did_you_mean(name, known)}there are: {', '.join(known)} ({more})"
        )


def executor_plug_ins() -> list[str]:
    """Names of executors that other packages bring."""
    return sorted(plug_in.name for plug_in in entry_points(group=EXECUTOR_PLUG_INS))


def hydra_error(key: str) -> ConfigError:
    """The error for a setting of Hydra's own."""
    plain = key.replace("/", ".")
    fitting = [told for known, told in HYDRA.items() if f"{plain}.".startswith(f"{known}.")]
    told = fitting[0] if fitting else "nothing stands in its place"
    return ConfigError(
        f"{key} is a setting of Hydra's own programs, and mergeops takes only its config language; "
        f"instead: {told}"
    )
