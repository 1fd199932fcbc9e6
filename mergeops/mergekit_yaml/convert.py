"""From one document of a mergekit config to a native recipe, as a plain dict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mergeops.mergekit_yaml.document import Document, Input, ModuleOf, SliceOf
from mergeops.mergekit_yaml.method_table import FIRST, NEEDED, OPTIONAL, POINT
from mergeops.mergekit_yaml.nodes import Item
from mergeops.mergekit_yaml.references import Reference
from mergeops.mergekit_yaml.settings import Settings, names_of
from mergeops.mergekit_yaml.tokens import tokenizer_of
from mergeops.slices import BASE


def convert_document(
    document: Document, merges: Iterable[str], *, compat: bool
) -> tuple[dict[str, Any], dict[str, Item]]:
    """A native recipe, and where its keys come from.

    Args:
        document: one merge.
        merges: names of the config's merges, which models may refer to.
        compat: whether mergekit's numbers are wanted where ours differ by choice.

    Raises:
        ConfigError: with the line, the key, the value and what is allowed.
    """
    conversion = _Conversion(document, merges, compat=compat)
    recipe = conversion.recipe()
    return recipe, conversion.origins


class _Conversion:
    def __init__(self, document: Document, merges: Iterable[str], *, compat: bool) -> None:
        self._document = document
        self._merges = merges
        self._compat = compat
        self._settings = Settings(document.method, compat=compat)
        self._role = self._settings.described.base
        self._names: dict[Reference, str] = {}
        self.origins: dict[str, Item] = {}

    def recipe(self) -> dict[str, Any]:
        document, settings = self._document, self._settings
        config = document.parameters
        self._check_names()
        base = self._base()
        self._name_sources()
        result: dict[str, Any] = {**base, "sources": {}}
        parts: dict[str, dict[str, Any]] = {}
        decided: set[str] = set()
        if document.whole is not None and not document.whole.is_sliced:
            (one,) = document.whole.slices
            for source in self._ordered(one, self._base_of(one)):
                values = settings.model_values(source.item, [source.parameters], config)
                parts[self._names[source.model]] = values
        elif document.whole is not None:
            result["slices"] = self._slices(document.whole)
            decided = names_of(result["slices"])
        else:
            result["modules"] = {
                name: self._module(module) for name, module in document.modules.items()
            }
            for module in result["modules"].values():
                decided |= names_of(module.get("slices", [module]))
        for reference, name in self._names.items():
            applied_to = {"base": reference.base} if reference.base else {}
            result["sources"][name] = {
                "uri": reference.uri,
                **applied_to,
                **parts.get(name, {}),
            }
        settings.check_required(document.item, config, decided)
        result["method"] = {"name": document.method, **settings.method_values(config)}
        rules = settings.rules(config, decided)
        if rules:
            result["rules"] = rules
        result["tokenizer"] = tokenizer_of(document, self._input_name, self._merges)
        result["dtype"] = {"compute": "float32", "save": document.dtype or "auto"}
        result["tied_head"] = "untie"
        if self._compat:
            result["compat"] = "mergekit"
        self._note_origins()
        return result

    def _note_origins(self) -> None:
        document = self._document
        keys = document.item.entries("")
        origins = {"method": keys["merge_method"]}
        if "base_model" in keys:
            origins["base"] = keys["base_model"]
        for key in ("chat_template", "tokenizer", "tokenizer_source"):
            if key in keys:
                origins["tokenizer"] = keys[key]
        places = {"slices": document.whole} if document.whole else {}
        places |= {f"modules.{name}.slices": m for name, m in document.modules.items()}
        for prefix, module in places.items():
            origins[prefix.removesuffix(".slices")] = module.item
            for i, one in enumerate(module.slices):
                origins[f"{prefix}[{i}]"] = one.item
                for source in one.inputs:
                    named = self._names.get(source.model)
                    model = source.item.entries("")["model"]
                    if named is not None:
                        origins.setdefault(f"sources.{named}", model)
                inputs = self._ordered(one, self._base_of(one))
                for j, source in enumerate(inputs):
                    origins[f"{prefix}[{i}].sources[{j}]"] = source.item.entries("").get(
                        "layer_range", source.item
                    )
        if document.base in self._names and "base_model" in keys:
            origins.setdefault(f"sources.{self._names[document.base]}", keys["base_model"])
        self.origins = {**self._settings.filters, **origins}

    def _check_names(self) -> None:
        settings = self._settings
        settings.check_names(self._document.parameters, of_model=False)
        for module in self._each_module():
            settings.check_names(module.parameters, of_model=False)
            for one in module.slices:
                settings.check_names(one.parameters, of_model=False)
                for source in one.inputs:
                    settings.check_names(source.parameters, of_model=True)

    def _each_module(self) -> list[ModuleOf]:
        document = self._document
        return [document.whole] if document.whole else list(document.modules.values())

    def _each_slice(self) -> list[SliceOf]:
        return [one for module in self._each_module() for one in module.slices]

    def _base_of(self, one: SliceOf) -> Reference | None:
        return one.base or self._document.base

    def _base(self) -> dict[str, str | None]:
        """The native base, with the adapter that is applied to it."""
        document = self._document
        own = [one.base for one in self._each_slice() if one.base is not None]
        base = document.base or (own[0] if own else None)
        if base is None:
            if self._role in (NEEDED, FIRST):
                raise document.item.error(f"base_model is missing; {document.method} needs it")
            return {"base": None}
        if self._role == FIRST:
            return {"base": None}
        if base.base is None:
            return {"base": base.uri}
        return {"base": base.base, "base_adapter": base.uri}

    def _name_sources(self) -> None:
        """Short names, in order; the base has one only where it is a source."""
        document = self._document
        vectors = self._role in (NEEDED, OPTIONAL)
        for one in self._each_slice():
            base = self._base_of(one)
            inputs = self._ordered(one, base)
            for source in inputs:
                self._name(source.model)
            if vectors and base is not None and base != document.base and document.base:
                self._name(base)
        whole = document.whole
        unlisted = document.base if document.base not in self._names else None
        if unlisted is None or whole is None or whole.is_sliced:
            return
        if self._role == POINT:
            self._name(unlisted)
        elif self._role == FIRST:
            self._names = {unlisted: self._unique(unlisted), **self._names}

    def _ordered(self, one: SliceOf, base: Reference | None) -> list[Input]:
        """A slice's sources: without the base of task vectors; from before to, for slerp."""
        if self._role in (NEEDED, OPTIONAL):
            return [source for source in one.inputs if source.model != base]
        if self._role == FIRST:
            return sorted(one.inputs, key=lambda source: source.model != base)
        return list(one.inputs)

    def _name(self, reference: Reference) -> None:
        if reference not in self._names:
            self._names[reference] = self._unique(reference)

    def _unique(self, reference: Reference) -> str:
        name, n = reference.short_name, 2
        while name in self._names.values():
            name, n = f"{reference.short_name}_{n}", n + 1
        return name

    def _input_name(self, reference: Reference) -> str | None:
        """The name of an input, base or source; None if the reference is none."""
        if reference in self._names:
            return self._names[reference]
        return BASE if reference == self._document.base else None

    def _module(self, module: ModuleOf) -> dict[str, Any]:
        slices = self._slices(module)
        return {"slices": slices} if module.is_sliced else slices[0]

    def _slices(self, module: ModuleOf) -> list[dict[str, Any]]:
        return [self._slice(one, module) for one in module.slices]

    def _slice(self, one: SliceOf, module: ModuleOf) -> dict[str, Any]:
        config = self._document.parameters
        base = self._base_of(one)
        levels = [one.parameters, module.parameters]
        parts = []
        for source in self._ordered(one, base):
            values = self._settings.model_values(source.item, [source.parameters, *levels], config)
            parts.append(self._part(self._names[source.model], source, values))
        if not parts:
            raise one.item.error("has no model besides the base")
        result: dict[str, Any] = {"sources": parts}
        if self._role in (NEEDED, OPTIONAL) and base is not None:
            listed = [source for source in one.inputs if source.model == base]
            if len(listed) > 1:
                raise listed[1].item.error("is the base again; a slice has one")
            name = self._names.get(base, BASE)
            if listed:
                result["base"] = self._part(name, listed[0], {})
            elif name != BASE:
                raise one.item.error("its base_model is none of its sources; add its layer_range")
        if self._role == FIRST and base not in [source.model for source in one.inputs]:
            raise one.item.error(
                f"base_model is none of its sources; {self._document.method} goes from the base to "
                "the other"
            )
        return {**result, **self._settings.slice_values(levels, config)}

    def _part(self, name: str, source: Input, values: dict[str, Any]) -> dict[str, Any]:
        layers = {} if source.layers is None else {"layers": list(source.layers)}
        return {"source": name, **layers, **values}
