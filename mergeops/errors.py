"""Every error that mergeops raises on purpose, and the exit code it ends the command with.

    MergeopsError            1   anything below
    ├── ConfigError          2   the recipe, an override or a flag is wrong
    ├── SourceError          3   an input checkpoint cannot be found, read or trusted
    ├── MergeError           4   the inputs cannot be merged, or the output cannot be written
    ├── EvaluationError      5   a task is unknown or broken, or a model cannot be scored
    ├── TrackingError        6   the MLflow server cannot be reached or refuses
    │   └── AwayError        6   it is away for now; what was to be logged can be logged later
    ├── GateRefusedError     7   the evidence does not support the promotion
    └── ServiceError         8   the merge service or its database cannot be reached or refuses

A message is one line: what is wrong, where, the value, and what is allowed or what to do next.
Errors of lower layers are caught where they arise and raised again as one of these, with the
original as ``__cause__``; ``mergeops --debug`` shows it.

What is found wrong long after a file was read may still say the line: the error carries the
recipe's key, ``at``, and ``locating`` finds the key's origin, where the recipe knows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class MergeopsError(Exception):
    """Base of all errors that are the user's to fix; never raised itself.

    Args:
        message: one line.
        at: the recipe's key that it is about, e.g. ``sources.a`` or ``slices[1].sources[0]``.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, at: str = "") -> None:
        super().__init__(message)
        self.at = at


class ConfigError(MergeopsError):
    """The recipe, an override or a flag is wrong."""

    exit_code = 2


class SourceError(MergeopsError):
    """An input checkpoint cannot be found, read or trusted."""

    exit_code = 3


class MergeError(MergeopsError):
    """The inputs cannot be merged, or the output cannot be written."""

    exit_code = 4


class EvaluationError(MergeopsError):
    """A task is unknown or broken, or a model cannot be scored."""

    exit_code = 5


class TrackingError(MergeopsError):
    """The MLflow server cannot be reached, or refuses what it was asked."""

    exit_code = 6


class AwayError(TrackingError):
    """The server or its artifact store cannot be reached, fails inside or denies access: asking on
    is in vain now, and the same request may pass later."""


class GateRefusedError(MergeopsError):
    """The evidence does not support the promotion."""

    exit_code = 7


class ServiceError(MergeopsError):
    """The merge service or its database cannot be reached, or refuses what it was asked."""

    exit_code = 8


@contextmanager
def locating(prefix: str, origins: Mapping[str, str]) -> Iterator[None]:
    """Put the place where a key was written before an error about the key.

    Args:
        prefix: key of the part of the recipe that is worked on; empty for the whole.
        origins: key -> file, line and key there; an error about another key gets the place of the
            nearest key that it is part of.
    """
    try:
        yield
    except MergeopsError as error:
        key = ".".join(part for part in (prefix, error.at) if part)
        place = _origin(key, origins)
        if place is None:
            if prefix and prefix not in str(error):
                raise type(error)(f"{prefix}: {error}", at=error.at) from error
            raise
        raise type(error)(f"{place}: {error}") from error


def key_of(name: str) -> str:
    """The recipe's key of an input."""
    return name if name == "base" else f"sources.{name}"


@contextmanager
def about(at: str) -> Iterator[None]:
    """Make errors that are about no key yet be about this one."""
    try:
        yield
    except MergeopsError as error:
        error.at = error.at or at
        raise


def _origin(key: str, origins: Mapping[str, str]) -> str | None:
    while key and key not in origins:
        key = re.sub(r"(^|\.|\[)[^.\[]*$", "", key)
    return origins.get(key)
