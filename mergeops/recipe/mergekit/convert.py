"""From one document of a mergekit config to a native recipe, as a plain dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.recipe.mergekit.document import Document, Input, ModuleOf, SliceOf
from mergeops.recipe.mergekit.levels import Settings, names_of
from mergeops.recipe.mergekit.method_table import FIRST, NEEDED, OPTIONAL, POINT
from mergeops.recipe.mergekit.model_names import ModelName
from mergeops.recipe.mergekit.token_settings import tokenizer_of
from mergeops.recipe.slices import BASE
from mergeops.recipe.yaml_items import YamlItem


@dataclass(frozen=True)
class Converted:
    """A mergekit config as a native recipe."""

    recipe: Mapping[str, Any]
    """As ``Recipe.from_dict`` reads it."""
    origins: Mapping[str, str]
    """Key of the recipe -> file, line and key in mergekit's YAML, for errors."""
    notes: tuple[str, ...] = ()
    """What the YAML says without effect, with its lines."""


def convert_document(document: Document, merges: Iterable[str], *, compat: bool) -> Converted:
    """One document as a native recipe.

    ``merges`` names the config's merges, which models may refer to; with ``compat``, the recipe
    gives mergekit's numbers where ours differ by choice.
    """
    conversion = _Conversion(document, merges, compat=compat)
    recipe = conversion.recipe()
    origins = {key: item.place for key, item in conversion.origins().items()}
    return Converted(recipe, origins, tuple(conversion.settings.notes))


class _Conversion:
    def __init__(self, document: Document, merges: Iterable[str], *, compat: bool) -> None:
        self._document = document
        self._merges = merges
        self._compat = compat
        self.settings = Settings(document.method, compat=compat)
        self._role = self.settings.described.base
        self._names: dict[ModelName, str] = {}

    def recipe(self) -> dict[str, Any]:
        document, settings = self._document, self.settings
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
            result["modules"] = {}
            for name, module in document.modules.items():
                slices = self._slices(module)
                decided |= names_of(slices)
                result["modules"][name] = {"slices": slices} if module.is_sliced else slices[0]
        for model, name in self._names.items():
            applied_to = {"base": model.base} if model.base else {}
            result["sources"][name] = {"uri": model.uri, **applied_to, **parts.get(name, {})}
        settings.check_required(document.item, config, decided)
        levels = [(one.parameters, m.parameters) for m in self._each_module() for one in m.slices]
        result["method"] = {
            "name": document.method,
            **settings.method_values(config),
            **settings.common_values(levels, config),
        }
        rules = settings.rules(config, decided)
        if rules:
            result["rules"] = rules
        result["tokenizer"] = tokenizer_of(document, self._input_name, self._merges)
        result["dtype"] = {"compute": "float32", "save": document.dtype or "auto"}
        result["tied_head"] = "untie"
        if self._compat:
            result["compat"] = "mergekit"
        return result

    def origins(self) -> dict[str, YamlItem]:
        """Key of the recipe -> where it comes from."""
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
        return {**self.settings.filters, **origins}

    def _check_names(self) -> None:
        settings = self.settings
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

    def _base_of(self, one: SliceOf) -> ModelName | None:
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
            for source in self._ordered(one, base):
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

    def _ordered(self, one: SliceOf, base: ModelName | None) -> list[Input]:
        """A slice's sources: without the base of task vectors; from before to, for slerp."""
        if self._role in (NEEDED, OPTIONAL):
            return [source for source in one.inputs if source.model != base]
        if self._role == FIRST:
            return sorted(one.inputs, key=lambda source: source.model != base)
        return list(one.inputs)

    def _name(self, model: ModelName) -> None:
        if model not in self._names:
            self._names[model] = self._unique(model)

    def _unique(self, model: ModelName) -> str:
        name, n = model.short_name, 2
        while name in self._names.values():
            name, n = f"{model.short_name}_{n}", n + 1
        return name

    def _input_name(self, model: ModelName) -> str | None:
        """The name of an input, base or source; None if the model is none."""
        own = BASE if model == self._document.base else None
        return self._names.get(model, own)

    def _slices(self, module: ModuleOf) -> list[dict[str, Any]]:
        return [self._slice(one, module) for one in module.slices]

    def _slice(self, one: SliceOf, module: ModuleOf) -> dict[str, Any]:
        config = self._document.parameters
        base = self._base_of(one)
        levels = [one.parameters, module.parameters]
        parts = []
        for source in self._ordered(one, base):
            values = self.settings.model_values(source.item, [source.parameters, *levels], config)
            parts.append(_part(self._names[source.model], source, values))
        if not parts:
            raise one.item.error("has no model besides the base")
        result: dict[str, Any] = {"sources": parts}
        if self._role in (NEEDED, OPTIONAL) and base is not None:
            listed = [source for source in one.inputs if source.model == base]
            if len(listed) > 1:
                raise listed[1].item.error("is the base again; a slice has one")
            name = self._names.get(base, BASE)
            if listed:
                result["base"] = _part(name, listed[0], {})
            elif name != BASE:
                raise one.item.error("its base_model is none of its sources; add its layer_range")
        if self._role == FIRST and base not in [source.model for source in one.inputs]:
            raise one.item.error(
                f"base_model is none of its sources; {self._document.method} goes from the base to "
                "the other"
            )
        return {**result, **self.settings.slice_values(levels, config)}


def _part(name: str, source: Input, values: dict[str, Any]) -> dict[str, Any]:
    layers = {} if source.layers is None else {"layers": list(source.layers)}
    return {"source": name, **layers, **values}
