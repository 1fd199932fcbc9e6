"""The packaged config directory, and a recipe file over its defaults where that takes no Hydra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError
from mergeops.recipe.yaml_items import read_documents

_OF_HYDRA = {"defaults", "hydra", "recipe"}
"""Keys of a recipe file that say something to Hydra."""


def packaged_conf() -> Path:
    """The shipped config directory, in a wheel or in a checkout."""
    here = Path(__file__).resolve().parent.parent
    for conf in (here / "conf", here.parent / "conf"):
        if (conf / "recipe.yaml").is_file():
            return conf
    raise ConfigError(f"no config directory beside {here}; the installation is incomplete")


def layered(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """A recipe file's keys over the packaged defaults, as Hydra layers them.

    Hydra takes longer to import and to compose than a small merge takes. It is not needed for a
    file that has neither a defaults list nor references.

    Args:
        content: of the recipe file.

    Returns:
        The composed config as plain types; None where it takes Hydra.
    """
    if not _OF_HYDRA.isdisjoint(content) or not _is_plain(content):
        return None
    conf = packaged_conf()
    primary = _read(conf / "recipe.yaml")
    layers: list[dict[str, Any]] = []
    for entry in primary.pop("defaults"):
        if entry == "_self_":
            layers.append(primary)
            continue
        ((group, name),) = entry.items()
        if name is None:
            continue
        file = conf / group / f"{name}.yaml"
        # Methods have no files: each is an option of its own name.
        layer = _read(file) if file.is_file() else {"name": name}
        if not _OF_HYDRA.isdisjoint(layer):
            return None
        layers.append({group: layer})
    merged: dict[str, Any] = {}
    for above in (*layers, content):
        _merge(merged, above)
    return merged


def _read(file: Path) -> dict[str, Any]:
    (document,) = read_documents(file.read_text(encoding="utf-8"), str(file))
    read: dict[str, Any] = document.plain()
    return read


def _is_plain(value: Any) -> bool:
    """Whether Hydra takes a value as it is written: no reference, nothing that is missing."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or isinstance(value, bool | int | float)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    """Lay mappings over each other key by key; everything else replaces what was there."""
    for key, value in above.items():
        if isinstance(value, Mapping):
            if not isinstance(below.get(key), dict):
                below[key] = {}
            _merge(below[key], value)
        else:
            below[key] = list(value) if isinstance(value, list) else value
