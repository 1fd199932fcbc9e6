"""From the text of mergekit's YAML to a native recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError
from mergeops.recipe.mergekit.convert import Converted, convert_document
from mergeops.recipe.mergekit.document import Document, read_document
from mergeops.recipe.yaml_items import YamlItem, read_documents


def is_mergekit(text: str, file: str) -> bool:
    """Whether a YAML text is a mergekit config: some document of it has merge_method."""
    return "merge_method" in text and any(
        item.is_mapping and any(key.value == "merge_method" for key, _ in item.node.value)
        for item in read_documents(text, file)
    )


def read_mergekit(path: Path, *, compat: bool = False) -> Converted:
    """Read a config of one merge, or of several of which one has no name.

    Args:
        path: the YAML file.
        compat: whether mergekit's numbers are wanted where ours differ by choice.
    """
    try:
        items = read_documents(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not items:
        raise ConfigError(f"{path} is empty; it needs merge_method and models")
    named: dict[str, YamlItem] = {}
    for item in items:
        name_item = item.entries("merge_method and models").get("name")
        if name_item is None or name_item.is_null:
            continue
        name = name_item.text()
        if name in named:
            raise name_item.error(f"is {name!r}, the name of another document already")
        named[name] = item
    final = [item for item in items if item not in named.values()]
    if len(items) > 1 and len(final) != 1:
        raise items[-1].error(
            f"{len(final)} of {len(items)} documents have no name; exactly one, the final merge, "
            "has none"
        )
    documents: dict[str, Document] = {n: read_document(i, named) for n, i in named.items()}
    last = read_document(final[0], named) if final else next(iter(documents.values()))
    main = convert_document(last, named, compat=compat)
    if len(items) == 1:
        return main
    merges: dict[str, Any] = {}
    origins = dict(main.origins)
    notes: list[str] = []
    for name in _in_order(documents):
        merge = convert_document(documents[name], named, compat=compat)
        merges[name] = merge.recipe
        origins |= {f"merges.{name}.{key}": place for key, place in merge.origins.items()}
        notes += merge.notes
    return Converted({"merges": merges, **main.recipe}, origins, (*notes, *main.notes))


def refuse_other_configs(document: YamlItem, path: Path) -> None:
    """Refuse a config of mergekit's that is no merge: of another command, or without its method."""
    content = document.entries("method and sources")
    if {"experts", "gate_mode"} & content.keys():
        raise ConfigError(
            f"{path} is a config of mergekit-moe (it has experts, no merge_method); `mergeops moe "
            f"{path} OUT` makes the dense models experts of one"
        )
    if "genome" in content:
        raise ConfigError(
            f"{path} is a config of mergekit-evolve (it has a genome); here, `mergeops search` "
            "looks for the best merge"
        )
    if "models" in content:
        raise content["models"].error(
            "is a key of mergekit's configs, but there is no merge_method, which they need"
        )


def _in_order(documents: Mapping[str, Any]) -> list[str]:
    """Names so that every merge comes after those that it is made from."""
    ordered: list[str] = []
    waiting = dict(documents)
    while waiting:
        ready = [n for n, d in waiting.items() if not d.merges_used() & waiting.keys()]
        if not ready:
            name, document = next(iter(waiting.items()))
            raise document.item.error(
                f"the merge {name!r} is made from itself, over {', '.join(waiting)}"
            )
        ordered += ready
        for name in ready:
            del waiting[name]
    return ordered
