"""mergeops: merge fine-tuning runs into a better model, scored, tracked and promoted in MLflow.

The names below are the Python API (``mergeops.api``). What they need is imported when they are
first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from mergeops.version import __version__

if TYPE_CHECKING:
    from mergeops.adoption.callback import MergeReadyCallback
    from mergeops.api import (
        Verification,
        adopt,
        compare,
        extract,
        inspect,
        lineage,
        merge,
        moe,
        promote,
        recover,
        rollback,
        run,
        search,
        transplant,
        verify,
    )
    from mergeops.recipe import Recipe

__all__ = [
    "MergeReadyCallback",
    "Recipe",
    "Verification",
    "__version__",
    "adopt",
    "compare",
    "extract",
    "inspect",
    "lineage",
    "merge",
    "moe",
    "promote",
    "recover",
    "rollback",
    "run",
    "search",
    "transplant",
    "verify",
]

_HOMES = {"MergeReadyCallback": "mergeops.adoption.callback", "Recipe": "mergeops.recipe"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'mergeops' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "mergeops.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Room(ModuleType):
    def __call__(self, *arguments: object, **named: object) -> object:
        word = self.__name__.rpartition(".")[2]
        return getattr(import_module("mergeops.api"), word)(*arguments, **named)


class _Face(ModuleType):
    """Keeps ``mergeops.search`` and its like callable, which are rooms of it too.

    The import system sets a room as an attribute of the package, which hides the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("lineage", "recover", "search", "transplant") and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
