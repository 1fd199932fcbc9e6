"""mergekit's YAML as a native recipe, so that users' files run unchanged.

    nodes           YAML with line numbers
    references      path@revision+lora
    document        one merge, every key known
    method_table    mergekit's methods, their parameters and defaults
    settings        scalars, gradients and filters, level by level
    tokens          tokenizer and chat template
    convert         one document as a native recipe

What is read here decides everything: the native recipe that ``read_mergekit`` gives is merged like
any other, and ``mergeops convert`` writes it to a file. docs/mergekit.md lists what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.errors import ConfigError

if TYPE_CHECKING:
    from mergeops.mergekit_yaml.nodes import Item


@dataclass(frozen=True)
class Converted:
    """A mergekit config as a native recipe."""

    recipe: Mapping[str, Any]
    """As ``Recipe.from_dict`` reads it."""
    origins: Mapping[str, str]
    """Key of the recipe -> file, line and key in mergekit's YAML, for errors."""
    notes: tuple[str, ...] = ()
    """What the YAML says without effect, with its lines."""

    def yaml(self, origin: str) -> str:
        """The text of a recipe file.

        Args:
            origin: named in its first line.
        """
        import yaml

        from mergeops.compose import PACKAGE

        body = yaml.safe_dump(dict(self.recipe), sort_keys=False, allow_unicode=True, width=100)
        head = f"# Converted from mergekit's {origin}; run it with: mergeops merge THIS_FILE OUT"
        return f"{PACKAGE}\n{head}\n{body}"


def is_mergekit(text: str) -> bool:
    """Whether a YAML text is a mergekit config: some document of it has merge_method."""
    import yaml

    from mergeops.mergekit_yaml.nodes import read_documents

    if "merge_method" not in text:
        return False
    return any(
        isinstance(item.node, yaml.MappingNode)
        and any(key.value == "merge_method" for key, _ in item.node.value)
        for item in read_documents(text, "the file")
    )


def read_mergekit(path: Path, *, compat: bool = False) -> Converted:
    """Read a config of one merge, or of several of which one has no name.

    Args:
        path: the YAML file.
        compat: whether mergekit's numbers are wanted where ours differ by choice.

    Raises:
        ConfigError: with the line, the key, the value and what is allowed.
    """
    from mergeops.mergekit_yaml.convert import convert_document
    from mergeops.mergekit_yaml.document import Document, read_document
    from mergeops.mergekit_yaml.nodes import read_documents

    try:
        items = read_documents(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not items:
        raise ConfigError(f"{path} is empty; it needs merge_method and models")
    named: dict[str, Item] = {}
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
    origins = {key: item.place for key, item in main.origins.items()}
    if len(items) == 1:
        return Converted(main.recipe, origins, main.notes)
    merges: dict[str, Any] = {}
    notes: list[str] = []
    for name in _in_order(documents):
        one = convert_document(documents[name], named, compat=compat)
        merges[name] = one.recipe
        origins |= {f"merges.{name}.{key}": item.place for key, item in one.origins.items()}
        notes += one.notes
    return Converted({"merges": merges, **main.recipe}, origins, (*notes, *main.notes))


def refuse_other_configs(document: Item, path: Path) -> None:
    """Refuse a config of mergekit's that is no merge: of another command, or without its method.

    Args:
        document: a mapping without ``merge_method``.
        path: the file.

    Raises:
        ConfigError: says which it is.
    """
    content = document.entries("method and sources")
    if {"experts", "gate_mode"} & content.keys():
        raise ConfigError(
            f"{path} is a config of mergekit-moe (it has experts, no merge_method); making experts "
            "of dense models is not done here, only merging models that have experts"
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
