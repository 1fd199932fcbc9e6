"""torch, imported when it is first used.

Importing it takes most of a second, about as long as a copy of a gigabyte; a merge by compiled
kernels, or a command that only looks at files, does without.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any


class _Deferred(ModuleType):
    """Stands for the module of its name."""

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.__name__), attribute)


if TYPE_CHECKING:
    import torch as torch
    from torch import Tensor as Tensor
else:
    torch = _Deferred("torch")
    # For annotations only.
    Tensor = Any
