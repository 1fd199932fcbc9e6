"""How the result is cut into files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol, TypeVar

from mergeops.checkpoint.dtypes import item_size
from mergeops.checkpoint.layout import SINGLE
from mergeops.errors import ConfigError

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}


class _Sized(Protocol):
    @property
    def dtype(self) -> str: ...

    @property
    def nbytes(self) -> int: ...


Task = TypeVar("Task", bound=_Sized)


def parse_size(where: str, text: str) -> int:
    """``5GB`` -> bytes.

    Raises:
        ConfigError: no number, no known unit, or nothing at all.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    size = int(float(found.group(1)) * _UNITS.get(found.group(2), 0)) if found else 0
    if size < 1:
        raise ConfigError(
            f"{where} is {text!r}; write a number with one of {', '.join(_UNITS)}, e.g. 5GB"
        )
    return size


def assign_shards(tasks: Iterable[Task], limit: int) -> dict[str, list[Task]]:
    """Fill files in order; a tensor larger than the limit has a file for itself.

    Inside a file, wider formats come first, so that every tensor is aligned to its element size.

    Args:
        tasks: the result's tensors.
        limit: bytes of tensor data in a file.

    Returns:
        File name, as Hugging Face names it, -> tensors in the order of the data.
    """
    groups: list[list[Task]] = [[]]
    filled = 0
    for task in tasks:
        if groups[-1] and filled + task.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(task)
        filled += task.nbytes
    for group in groups:
        group.sort(key=lambda task: -item_size(task.dtype))
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    n = len(groups)
    return {f"model-{i:05d}-of-{n:05d}.safetensors": g for i, g in enumerate(groups, start=1)}
