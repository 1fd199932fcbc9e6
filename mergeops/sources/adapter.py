"""Which full model a LoRA adapter applies to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergeops.sources.contents import ADAPTER_CONFIG, examine
from mergeops.sources.hub import SCHEME
from mergeops.sources.path_map import moved
from mergeops.sources.place import LocalPlace, local_path, read_json


def said_base(adapter: Path) -> str | None:
    """What adapter_config.json calls the model that was trained: a path or a hub id."""
    said = (read_json(LocalPlace(adapter), ADAPTER_CONFIG) or {}).get("base_model_name_or_path")
    return said if isinstance(said, str) and said else None


def reachable(said: str, path_map: Mapping[str, str]) -> Path | None:
    """The directory that ``said`` means, where it is a full checkpoint on this machine."""
    path = local_path(moved(said, path_map))
    if path is None or not path.is_dir():
        return None
    contents = examine(LocalPlace(path))
    return path if "full" in (contents.kind, contents.pickled) else None


def is_same(said: str, uri: str | None) -> bool:
    """Whether the adapter and the recipe name one base: the same hub id, or the same path."""
    if uri is None:
        return False
    if said == uri or _hub_id(said) == _hub_id(uri):
        return True
    ours, theirs = local_path(said), local_path(uri)
    return ours is not None and theirs is not None and ours.absolute() == theirs.absolute()


def _hub_id(name: str) -> str:
    return name.removeprefix(SCHEME).split("@", 1)[0]
