"""One merge of a mergekit config, key by key, every key known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mergeops.recipe.merge_uris import MERGE
from mergeops.recipe.mergekit.method_table import METHODS, PARAMETERS
from mergeops.recipe.mergekit.model_names import ModelName, read_reference
from mergeops.recipe.yaml_items import YamlItem

KEYS = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
)
DTYPES = ("bfloat16", "float16", "float32")
ONE_OF = ("models", "slices", "modules")


@dataclass(frozen=True)
class FilteredValue:
    """A value for the tensors whose name has ``filter`` in it; None: for all."""

    filter: str | None
    value: YamlItem
    """A number, or a list of numbers."""
    word: YamlItem | None = None
    """Where the filter stands."""

    @property
    def at(self) -> YamlItem:
        """Where to point at."""
        return self.word or self.value


Parameters = Mapping[str, tuple[FilteredValue, ...]]


@dataclass(frozen=True)
class Input:
    """A model, or layers of one."""

    item: YamlItem
    model: ModelName
    parameters: Parameters
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class SliceOf:
    """One entry of slices, or all models as one."""

    item: YamlItem
    inputs: tuple[Input, ...]
    base: ModelName | None
    parameters: Parameters


@dataclass(frozen=True)
class ModuleOf:
    """A module: slices, or models as one slice."""

    item: YamlItem
    slices: tuple[SliceOf, ...]
    parameters: Parameters
    is_sliced: bool


@dataclass(frozen=True, kw_only=True)
class Document:
    """One merge."""

    item: YamlItem
    name: str | None
    method: str
    base: ModelName | None
    parameters: Parameters
    whole: ModuleOf | None
    """Models or slices."""
    modules: Mapping[str, ModuleOf]
    dtype: str | None
    """What the result is saved in."""
    tokenizer: YamlItem | None
    tokenizer_source: YamlItem | None
    chat_template: YamlItem | None

    def merges_used(self) -> set[str]:
        """Names of the other merges that it is made from."""
        modules = [self.whole] if self.whole else list(self.modules.values())
        slices = [one for module in modules for one in module.slices]
        references = [self.base, *(one.base for one in slices)]
        references += [source.model for one in slices for source in one.inputs]
        uris = [uri for r in references if r is not None for uri in (r.uri, r.base) if uri]
        return {uri.removeprefix(MERGE) for uri in uris if uri.startswith(MERGE)}


def read_document(item: YamlItem, merges: Iterable[str]) -> Document:
    """Check one document; ``merges`` are the names of all documents that have one."""
    keys = item.mapping(KEYS, "merge_method and models")
    if "merge_method" not in keys:
        raise item.error("merge_method is missing")
    method = keys["merge_method"].choice(METHODS)
    forms = [key for key in ONE_OF if key in keys]
    if len(forms) != 1:
        named = " and ".join(forms) or "none of them"
        raise item.error(f"the merge has {named}; it needs one of {', '.join(ONE_OF)}")
    whole = modules = None
    if "modules" in keys:
        entries = keys["modules"].entries("{NAME: {slices: [...]}}")
        modules = {name: _module(one, merges) for name, one in entries.items()}
    else:
        whole = _module_of(keys, forms[0], merges, {})
    dtypes = [_dtype(keys[key]) for key in ("out_dtype", "dtype") if key in keys]
    if "tokenizer" in keys and "tokenizer_source" in keys:
        raise keys["tokenizer_source"].error("and tokenizer are both given; remove one")
    return Document(
        item=item,
        name=keys["name"].text() if "name" in keys else None,
        method=method,
        base=read_reference(keys["base_model"], merges) if "base_model" in keys else None,
        parameters=_parameters(keys.get("parameters")),
        whole=whole,
        modules=modules or {},
        dtype=dtypes[0] if dtypes else None,
        tokenizer=item.entries("").get("tokenizer"),
        tokenizer_source=keys.get("tokenizer_source"),
        chat_template=keys.get("chat_template"),
    )


def _module(item: YamlItem, merges: Iterable[str]) -> ModuleOf:
    keys = item.mapping(("slices", "models", "parameters"))
    forms = [key for key in ("slices", "models") if key in keys]
    if len(forms) != 1:
        raise item.error("needs either slices or models")
    return _module_of(keys, forms[0], merges, _parameters(keys.get("parameters")))


def _module_of(
    keys: Mapping[str, YamlItem], key: str, merges: Iterable[str], parameters: Parameters
) -> ModuleOf:
    items = keys[key].items(f"a list of {key}")
    if not items:
        raise keys[key].error("is empty")
    if key == "slices":
        return ModuleOf(keys[key], tuple(_slice(one, merges) for one in items), parameters, True)
    inputs = tuple(_input(one, merges, sliced=False) for one in items)
    seen: dict[ModelName, Input] = {}
    for one in inputs:
        if one.model in seen:
            raise one.item.error(
                f"is the same model as {seen[one.model].item.path} in line "
                f"{seen[one.model].item.line}; write it once, with the sum of the weights"
            )
        seen[one.model] = one
    return ModuleOf(keys[key], (SliceOf(keys[key], inputs, None, {}),), parameters, False)


def _slice(item: YamlItem, merges: Iterable[str]) -> SliceOf:
    keys = item.mapping(("sources", "base_model", "residual_weight", "parameters"))
    if "sources" not in keys:
        raise item.error("has no sources")
    inputs = tuple(
        _input(one, merges, sliced=True) for one in keys["sources"].items("a list of sources")
    )
    if not inputs:
        raise keys["sources"].error("is empty")
    first = inputs[0].layers or (0, 0)
    for one in inputs[1:]:
        ours = one.layers or (0, 0)
        if ours[1] - ours[0] != first[1] - first[0]:
            raise one.item.error(
                f"has {ours[1] - ours[0]} layers {list(ours)}, the first source of the slice "
                f"{first[1] - first[0]} {list(first)}; all of a slice have equally many"
            )
    base = read_reference(keys["base_model"], merges) if "base_model" in keys else None
    return SliceOf(item, inputs, base, _parameters(keys.get("parameters")))


def _input(item: YamlItem, merges: Iterable[str], *, sliced: bool) -> Input:
    allowed = ("model", "layer_range", "parameters") if sliced else ("model", "parameters")
    for key, one in item.entries("a model with parameters").items():
        if key in PARAMETERS:
            raise one.error(f"stands beside the model; write it below parameters: {{{key}: ...}}")
    keys = item.mapping(allowed, "a model with parameters")
    if "model" not in keys:
        raise item.error("has no model")
    layers = None
    if sliced:
        if "layer_range" not in keys:
            raise item.error("has no layer_range, e.g. [0, 8]")
        layers = _layers(keys["layer_range"])
    model = read_reference(keys["model"], merges)
    return Input(item, model, _parameters(keys.get("parameters")), layers)


def _layers(item: YamlItem) -> tuple[int, int]:
    numbers = [one.whole() for one in item.items("[FROM, TO]")]
    if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
        raise item.error(
            f"is {numbers}; it takes the first layer and the one after the last, e.g. [0, 8]"
        )
    return numbers[0], numbers[1]


def _parameters(item: YamlItem | None) -> Parameters:
    if item is None:
        return {}
    return {
        name: _choices(value)
        for name, value in item.entries("parameters of the method").items()
        if not value.is_null
    }


def _choices(item: YamlItem) -> tuple[FilteredValue, ...]:
    if item.is_mapping:
        return (_choice(item),)
    if item.is_list:
        items = item.items("")
        if not items:
            raise item.error("is an empty list")
        kinds = {one.is_mapping for one in items}
        if kinds == {True}:
            return tuple(_choice(one) for one in items)
        if kinds == {True, False}:
            raise item.error("mixes numbers with {filter: ..., value: ...}; write one kind")
    return (FilteredValue(None, item),)


def _choice(item: YamlItem) -> FilteredValue:
    keys = item.mapping(("filter", "value"))
    if "value" not in keys:
        raise item.error("has no value")
    word = keys["filter"].text("a part of tensor names") if "filter" in keys else None
    return FilteredValue(None if word == "*" else word, keys["value"], keys.get("filter"))


def _dtype(item: YamlItem) -> str:
    word = item.text().removeprefix("torch.")
    if word not in DTYPES:
        raise item.error(f"is {word!r}; allowed: {', '.join(DTYPES)}")
    return word
