"""A recipe file's YAML, native or mergekit's: every value knows its line, for the errors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from mergeops.errors import ConfigError
from mergeops.schema import FOREIGN, did_you_mean, is_finite

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_DEEPEST = 40
_MOST_NODES = 100_000
_PLAIN = re.compile(r"\$\{[\w\s.\[\]-]*\}")
"""A reference to another key of the recipe."""
_ESCAPED = re.compile(r"(?<!\\)(\\\\)*\\\$\{")
_TOO_LARGE = "is nested too deeply or too large for a merge config"


@dataclass(frozen=True)
class YamlItem:
    """One value of a YAML file.

    What is not of the kind that a method asks for raises a ConfigError with file, line and key.
    """

    node: yaml.Node
    file: str
    path: str
    """Keys that lead to it, e.g. ``models[1].parameters.weight``."""
    key: yaml.Node | None = None
    """Its key, where it has one."""

    @property
    def line(self) -> int:
        """Line of the key, or of the value itself; counted from 1."""
        return int((self.key or self.node).start_mark.line) + 1

    @property
    def place(self) -> str:
        """File, line and key."""
        return f"{self.file}, line {self.line}{f', {self.path}' if self.path else ''}"

    def without(self, prefix: str) -> YamlItem:
        """The item with another text: without what it begins with."""
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value.startswith(prefix):
            return self
        text = self.node.value.removeprefix(prefix)
        node = yaml.ScalarNode(self.node.tag, text, self.node.start_mark, self.node.end_mark)
        return dataclasses.replace(self, node=node)

    def error(self, message: str) -> ConfigError:
        """An error that begins with the file, the line and the key."""
        where = f" {self.path}" if self.path else ""
        return ConfigError(f"{self.file}, line {self.line}:{where} {message}")

    @property
    def value(self) -> Any:
        """As plain Python types."""
        return self._construct(self.node)

    def plain(self) -> Any:
        """As plain Python types, with YAML 1.2's idea of a number, and no key twice."""
        if self.is_mapping:
            return {key: item.plain() for key, item in self.entries("a mapping").items()}
        if self.is_list:
            return [item.plain() for item in self.items("a list")]
        assert isinstance(self.node, yaml.ScalarNode)
        value = self.value
        if not isinstance(value, str | int | float | None):
            # YAML 1.1 makes a date of 2024-01-01, and bytes of what is marked as binary.
            return self.node.value
        # YAML 1.1 takes 1e-5, without a dot, for a text; what is quoted is one.
        is_number = isinstance(value, str) and not self.node.style and _NUMBER.fullmatch(value)
        return float(str(value)) if is_number else value

    @property
    def is_null(self) -> bool:
        """Whether it is null or left empty."""
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == "tag:yaml.org,2002:null"

    @property
    def is_mapping(self) -> bool:
        """Whether it has keys."""
        return isinstance(self.node, yaml.MappingNode)

    @property
    def is_list(self) -> bool:
        """Whether it has items."""
        return isinstance(self.node, yaml.SequenceNode)

    def entries(self, what: str) -> dict[str, YamlItem]:
        """Its keys, whatever they are; null has none."""
        if self.is_null:
            return {}
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error(f"is {self.shown()}; it takes {what}")
        try:
            yaml.SafeLoader("").flatten_mapping(self.node)
        except yaml.YAMLError as error:
            raise self._unreadable(error) from error
        items: dict[str, YamlItem] = {}
        for key_node, value_node in self.node.value:
            key = str(self._construct(key_node))
            item = YamlItem(
                value_node, self.file, f"{self.path}.{key}" if self.path else key, key_node
            )
            if key in items:
                raise item.error(f"is given twice, first in line {items[key].line}")
            items[key] = item
        return items

    def mapping(self, allowed: Iterable[str], what: str = "a mapping") -> dict[str, YamlItem]:
        """Its keys, all of which are allowed."""
        allowed = tuple(allowed)
        items = self.entries(what)
        for key, item in items.items():
            if key not in allowed:
                raise item.unknown(key, allowed)
        return {key: item for key, item in items.items() if not item.is_null}

    def unknown(self, key: str, allowed: Iterable[str], of: str = "") -> ConfigError:
        """The error for a key that nobody reads, which this is the value of."""
        allowed = tuple(allowed)
        hint = did_you_mean(key, allowed)
        return self.error(f"is an unknown key{of}; {hint}allowed: {', '.join(allowed)}")

    def items(self, what: str) -> list[YamlItem]:
        """The items of a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error(f"is {self.shown()}; it takes {what}")
        return [
            YamlItem(node, self.file, f"{self.path}[{i}]") for i, node in enumerate(self.node.value)
        ]

    def text(self, what: str = "a text") -> str:
        """A text."""
        value = self.value if isinstance(self.node, yaml.ScalarNode) else None
        # A model or tokenizer may be called 7 or 1.5.
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert isinstance(self.node, yaml.ScalarNode)
            value = self.node.value
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"is {self.shown()}; it takes {what}")
        return value

    def choice(self, allowed: Iterable[str]) -> str:
        """One of these words."""
        allowed = tuple(allowed)
        value = self.text()
        if value not in allowed:
            hint = did_you_mean(value, allowed)
            raise self.error(f"is {value!r}; {hint}allowed: {', '.join(allowed)}")
        return value

    def number(self) -> float:
        """A number; true and false are 1 and 0, as mergekit takes them."""
        value = self.value if isinstance(self.node, yaml.ScalarNode) else None
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            # YAML 1.1 takes 1e-5, without a dot, for a text.
            return float(value)
        number = int(value) if isinstance(value, bool) else value
        if not is_finite(number):
            raise self.error(f"is {self.shown()}; it takes a number")
        return float(number)

    def whole(self) -> int:
        """A whole number."""
        value = self.number()
        if value != int(value):
            raise self.error(f"is {self.shown()}; it takes a whole number")
        return int(value)

    def truth(self) -> bool:
        """True or false."""
        value = self.number()
        if value not in (0.0, 1.0):
            raise self.error(f"is {self.shown()}; it takes true or false")
        return bool(value)

    def _construct(self, node: yaml.Node) -> Any:
        try:
            value = yaml.SafeLoader("").construct_object(node, deep=True)
            if isinstance(value, int):
                # More digits than Python writes, as 0xff...f, would end a message.
                str(value)
            return value
        except (yaml.YAMLError, *FOREIGN) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ConfigError:
        return self.error(f"cannot be read: {' '.join(str(error).split())}")

    def shown(self) -> str:
        """What it is, for an error."""
        if isinstance(self.node, yaml.ScalarNode):
            return "empty" if self.is_null else repr(self.value)
        return "a mapping" if self.is_mapping else "a list"


def read_documents(text: str, file: str) -> list[YamlItem]:
    """The documents of a YAML file, but for empty ones.

    Raises:
        ConfigError: it is no YAML, too large, or asks for more than other keys of its own:
            ``${oc.env:NAME}`` would carry the environment of whoever runs a stranger's recipe into
            messages and MLflow.
    """
    try:
        nodes = [
            node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None
        ]
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}, line {_line_of_depth(text, _DEEPEST)}: {_TOO_LARGE}") from error
    documents = [YamlItem(node, file, "") for node in nodes]
    for document in documents:
        _check_size(document)
        if "${" in text:
            _check_references(document)
    return [document for document in documents if not document.is_null]


def _check_references(item: YamlItem) -> None:
    if item.is_mapping:
        for key, inner in item.entries("a mapping").items():
            if _asks_outside(key):
                raise inner.error(_outside(key))
            _check_references(inner)
    elif item.is_list:
        for inner in item.items("a list"):
            _check_references(inner)
    elif isinstance(item.node, yaml.ScalarNode) and _asks_outside(item.node.value):
        raise item.error(_outside(item.node.value))


def _asks_outside(text: str) -> bool:
    """Whether there is more between ``${`` and ``}`` than the name of a key, however nested."""
    text, changed = _ESCAPED.sub("", text), True
    while changed:
        inner = _PLAIN.sub("x", text)
        text, changed = inner, inner != text
    return "${" in text


def _outside(text: str) -> str:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return (
        f"is {shown!r}; a recipe file may refer to its own keys only, as ${{seed}}: give what "
        "comes from elsewhere on the command line, KEY=VALUE"
    )


def _line_of_depth(text: str, depth: int) -> int:
    """The first line with so many open lists and mappings; YAML's events need no recursion."""
    mark = None
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark = event.start_mark
        if isinstance(event, yaml.CollectionStartEvent):
            depth -= 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth += 1
        if depth == 0:
            break
    return mark.line + 1 if mark else 1


def _check_size(document: YamlItem) -> None:
    """Aliases can make a short text an endless tree."""
    count = 0
    level = [document.node]
    for _ in range(_DEEPEST):
        below: list[yaml.Node] = []
        for node in level:
            if isinstance(node, yaml.MappingNode):
                below += [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                below += node.value
        count += len(below)
        if not below:
            return
        if count > _MOST_NODES:
            break
        level = below
    raise document.error(_TOO_LARGE)
