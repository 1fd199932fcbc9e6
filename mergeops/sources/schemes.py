"""What a source's URI may be: a registry that fills itself from the files of this package.

A file with one decorated function adds a kind of source everywhere: to recipes, to the versions of
registered models, to the messages that list what a source may be, to cards and pages.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mergeops.errors import SourceError
from mergeops.sources.contents import Location

DIRECTORY = ""
"""Prefix of what no other scheme claims and what looks like no URI."""
STORE = "://"
"""Stands for every URI with ``://`` in it that no other scheme claims."""

FindFunction = Callable[[str, Any], Location]
"""``find(uri, context: FindContext) -> Location``: the directory that a URI means, here or in an
artifact store. Where it holds no checkpoint, the caller says what is there instead. What cannot be
found raises SourceError."""


@dataclass
class Scheme:
    """One kind of source; called with its ``find``, it enters the registry."""

    prefixes: tuple[str, ...]
    """What its URIs begin with, e.g. ``hf://``."""
    hints: tuple[str, ...] = field(kw_only=True)
    """How its URIs are written, for messages that list what a source may be."""
    order: int = field(default=100, kw_only=True)
    """Where messages list the hints; equal ones stand by their prefix."""
    short_name: Callable[[str], str | None] = field(default=lambda uri: None, kw_only=True)
    """What a card calls the source of a URI: a public name, an empty text where the URI names
    nothing to a reader and the recipe's own name is better, or None where the last part of the URI
    will do."""
    takes_path: bool = field(default=False, kw_only=True)
    """Whether ``URI/PATH`` means a directory inside what the URI means."""
    is_place: bool = field(default=False, kw_only=True)
    """Whether a URI says itself where the bytes are, so that ``path_map`` may move it."""
    find: FindFunction = field(init=False)

    def __call__(self, find: FindFunction) -> FindFunction:
        """Register the scheme with the function that finds its sources."""
        if isinstance(self.prefixes, str) or isinstance(self.hints, str):
            raise TypeError(f"{find.__module__}: prefixes and hints of a scheme are tuples")
        for prefix in self.prefixes:
            if prefix in _REGISTRY:
                other = _REGISTRY[prefix].find.__module__
                raise TypeError(f"scheme {prefix!r} is in {other} and in {find.__module__}")
            _REGISTRY[prefix] = self
        self.find = find
        return find


_REGISTRY: dict[str, Scheme] = {}


def scheme_of(uri: str) -> Scheme:
    """The scheme of a source's URI: the one with the longest prefix that fits."""
    _discover()
    prefix = max((prefix for prefix in _REGISTRY if uri.startswith(prefix)), key=len)
    if prefix == DIRECTORY and "://" in uri:
        prefix = STORE
    return _REGISTRY[prefix]


def allowed(*, stores: bool = False) -> str:
    """What a source may be, in words; with the artifact stores that MLflow reads, or without."""
    _discover()
    store = _REGISTRY[STORE]
    others = {scheme.prefixes: scheme for scheme in _REGISTRY.values() if scheme is not store}
    in_order = sorted(others.values(), key=lambda scheme: (scheme.order, scheme.prefixes))
    hints = [hint for scheme in in_order for hint in scheme.hints]
    if stores:
        return f"{', '.join(hints)}, or {store.hints[0]}"
    return f"{', '.join(hints[:-1])} or {hints[-1]}"


def short_name(uri: str) -> str | None:
    """What a card calls a source; see ``Scheme``."""
    return scheme_of(uri).short_name(uri)


def local_path(uri: str) -> Path | None:
    """The path that a plain path or ``file:`` URI means, or None for another scheme."""
    if uri.startswith("file:"):
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise SourceError(f"{uri} names the host {parts.netloc!r}; write file:///PATH")
        return Path(unquote(parts.path))
    return Path(uri).expanduser() if DIRECTORY in scheme_of(uri).prefixes else None


@cache
def _discover() -> None:
    package = "mergeops.sources"
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        importlib.import_module(f"{package}.{module.name}")
