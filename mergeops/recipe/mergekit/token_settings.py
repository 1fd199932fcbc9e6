"""mergekit's tokenizer_source, tokenizer block and chat_template as the native tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mergeops.recipe.mergekit.chat_templates import TEMPLATES
from mergeops.recipe.mergekit.document import Document
from mergeops.recipe.mergekit.model_names import ModelName, read_reference
from mergeops.recipe.tokenizer import AUTO, BASE, SAME, UNION, ZERO
from mergeops.recipe.yaml_items import YamlItem

NameOf = Callable[[ModelName], str | None]
MIN_TEMPLATE = 20
"""Characters of the shortest literal template, as in mergekit: shorter ones are typos."""


def tokenizer_of(document: Document, name_of: NameOf, merges: Iterable[str]) -> dict[str, Any]:
    """The native tokenizer; ``name_of`` gives the name of a model, None where it is no input."""
    reader = _Reader(name_of, merges)
    result: dict[str, Any] = {"source": SAME}
    if document.tokenizer_source is not None:
        result["source"] = reader.source(document.tokenizer_source)
    elif document.tokenizer is not None:
        result = reader.block(document.tokenizer)
    if document.chat_template is not None:
        result["chat_template"] = _template(document.chat_template)
    return result


class _Reader:
    def __init__(self, name_of: NameOf, merges: Iterable[str]) -> None:
        self._name_of = name_of
        self._merges = merges

    def source(self, item: YamlItem) -> str:
        if not item.is_mapping and item.text() in (UNION, BASE):
            return item.text()
        return self.model(item, "union, base or a model of the merge")

    def model(self, item: YamlItem, allowed: str) -> str:
        # Earlier versions wrote model:PATH.
        name = self._name_of(read_reference(item.without("model:"), self._merges))
        if name is None:
            raise item.error(f"is no model of the merge; it takes {allowed}")
        return name

    def block(self, item: YamlItem) -> dict[str, Any]:
        keys = item.mapping(("source", "tokens", "pad_to_multiple_of"))
        result: dict[str, Any] = {
            "source": self.source(keys["source"]) if "source" in keys else UNION
        }
        if "tokens" in keys:
            entries = keys["tokens"].entries("{TOKEN: {source: MODEL}}")
            result["tokens"] = {token: self.token(one) for token, one in entries.items()}
        if "pad_to_multiple_of" in keys:
            multiple = keys["pad_to_multiple_of"].whole()
            if multiple < 1:
                raise keys["pad_to_multiple_of"].error(f"is {multiple}; allowed: at least 1")
            result["pad_to_multiple_of"] = multiple
        return result

    def token(self, item: YamlItem) -> dict[str, Any]:
        keys = item.mapping(("source", "force"))
        result: dict[str, Any] = {}
        if "source" in keys:
            result["source"] = self.token_source(keys["source"])
        if "force" in keys:
            result["force"] = keys["force"].truth()
        return result

    def token_source(self, item: YamlItem) -> Any:
        if not item.is_mapping or "kind" not in item.entries(""):
            return self.model(item, "a model of the merge, or {kind: zero}")
        kind = item.entries("")["kind"].choice(("zero", "model_token"))
        if kind == "zero":
            item.mapping(("kind",))
            return ZERO
        keys = item.mapping(("kind", "model", "token", "token_id"))
        if "model" not in keys or ("token" in keys) == ("token_id" in keys):
            raise item.error("needs a model and either token or token_id")
        result: dict[str, Any] = {"source": self.model(keys["model"], "a model of the merge")}
        if "token" in keys:
            return {**result, "token": keys["token"].text()}
        return {**result, "token_id": keys["token_id"].whole()}


def _template(item: YamlItem) -> str:
    text = item.text("auto, a name or a Jinja template")
    if text == AUTO:
        return AUTO
    if text in TEMPLATES:
        return TEMPLATES[text]
    if "{" not in text or len(text) < MIN_TEMPLATE:
        allowed = ", ".join((AUTO, *TEMPLATES))
        raise item.error(
            f"is {text!r}; allowed: {allowed}, or a Jinja template of {MIN_TEMPLATE} characters or "
            "more with a '{'"
        )
    return text
