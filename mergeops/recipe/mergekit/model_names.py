"""mergekit's model references, ``path[@revision][+lora[@revision]]``, as URIs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mergeops.recipe.merge_uris import MERGE
from mergeops.recipe.yaml_items import YamlItem

_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LONGEST = 96
"""Characters of ORG/NAME on the hub."""
_SCHEMES = ("hf://", "runs:/", "models:/", "s3://", "gs://", "file:", "mlflow-artifacts:")


@dataclass(frozen=True)
class ModelName:
    """One model of a config."""

    uri: str
    """The model's, or its LoRA adapter's."""
    base: str | None = None
    """For an adapter: the model it is applied to."""

    @property
    def short_name(self) -> str:
        """A source name made of the last part of the path."""
        last = re.split(r"[/:]", self.uri.split("@", 1)[0].rstrip("/"))[-1]
        name = re.sub(r"[^A-Za-z0-9_]+", "_", last).strip("_").lower() or "model"
        return name if name[0].isalpha() and name != "base" else f"m_{name}"


def read_reference(item: YamlItem, merges: Iterable[str] = ()) -> ModelName:
    """A model from a text or a mapping; ``merges`` are the names of the config's other merges."""
    if item.is_mapping:
        return _from_mapping(item, merges)
    text = item.text("a model: a directory, or ORG/NAME on the hub")
    if text in merges or _is_there(text):
        return ModelName(_uri(item, text, None, merges))
    path, plus, lora = text.partition("+")
    if "+" in lora:
        raise item.error(f"is {text!r}; only one +LORA is possible")
    model = _split(item, path, merges)
    return ModelName(_split(item, lora, merges), model) if plus else ModelName(model)


def _from_mapping(item: YamlItem, merges: Iterable[str]) -> ModelName:
    entries = item.mapping(("model", "lora", "override_architecture"))
    if "model" not in entries:
        raise item.error("has no model")

    def part(of: YamlItem) -> str:
        if not of.is_mapping:
            return _split(of, of.text("a path"), merges)
        keys = of.mapping(("path", "revision"))
        if "path" not in keys:
            raise of.error("has no path")
        revision = keys["revision"].text() if "revision" in keys else None
        return _uri(of, keys["path"].text(), revision, merges)

    model = part(entries["model"])
    if "lora" not in entries:
        return ModelName(model)
    return ModelName(part(entries["lora"]), model)


def _split(item: YamlItem, text: str, merges: Iterable[str]) -> str:
    if text.startswith(_SCHEMES) or _is_there(text):
        return _uri(item, text, None, merges)
    path, at, revision = text.partition("@")
    if "@" in revision or not path or (at and not revision):
        raise item.error(f"is {text!r}; write PATH or PATH@REVISION")
    return _uri(item, path, revision or None, merges)


def _uri(item: YamlItem, path: str, revision: str | None, merges: Iterable[str]) -> str:
    if path in merges:
        return f"{MERGE}{path}"
    if path.startswith(_SCHEMES):
        return path
    # As in mergekit, what exists is a path, relative to the working directory.
    if _is_there(path):
        return path
    if not _HUB.fullmatch(path) or path.startswith(".") or len(path) > _LONGEST:
        raise item.error(f"is {path!r}, which is no directory here and no ORG/NAME on the hub")
    return f"hf://{path}@{revision}" if revision else f"hf://{path}"


def _is_there(text: str) -> bool:
    """Whether it is a path here; a name that no file can have is none."""
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError):
        return False
