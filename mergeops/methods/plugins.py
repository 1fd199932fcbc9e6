"""Methods of other packages: entry points of the group ``mergeops.methods``.

An entry point has the name of the method, and its value is the module that registers it:

    [project.entry-points."mergeops.methods"]
    my_method = "my_package.my_method"

So the name is known without importing the package, which happens when the method is asked for.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "mergeops.methods"


@cache
def offers() -> Mapping[str, Sequence[EntryPoint]]:
    """Name of a method -> the entry points that offer it; looked up once in a process."""
    by_name: dict[str, list[EntryPoint]] = {}
    for entry_point in entry_points(group=GROUP):
        by_name.setdefault(entry_point.name, []).append(entry_point)
    return by_name


def distribution(entry_point: EntryPoint) -> str:
    """The installed package that the entry point belongs to, with its version."""
    dist = entry_point.dist
    return f"{dist.name} {dist.version}" if dist else entry_point.value


def import_module(entry_point: EntryPoint) -> str:
    """Import the entry point's module; says why that fails, or nothing."""
    try:
        importlib.import_module(entry_point.module)
    # Whatever another package does when it is imported.
    except Exception as error:
        logging.getLogger(__name__).debug("importing %s", entry_point.module, exc_info=True)
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""
