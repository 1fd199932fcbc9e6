"""A source as a recipe names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops import methods
from mergeops.errors import ConfigError
from mergeops.recipe.values import Setting, read_settings


@dataclass(frozen=True)
class SourceSpec:
    """One input checkpoint as the recipe names it."""

    uri: str
    """A directory, runs:/ID[/path], models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID or
    hf://ORG/NAME@REVISION. A LoRA adapter directory is applied to its base on the fly."""
    base: str | None = None
    """For a LoRA adapter: the model it was trained on, where adapter_config.json's own
    base_model_name_or_path cannot be reached from here."""
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    """The method's per-source parameters, written beside uri: weight, density, ..."""
    prompts: str | None = None
    """For methods that read prompts: this source's own file of texts, in place of the method's."""


def read_sources(raw: Any, method: methods.Method) -> dict[str, SourceSpec]:
    """Check what is written as ``sources``.

    Raises:
        ConfigError: with the full key, the value and what is allowed.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(
            f"sources is {raw!r}; write a mapping from a short name to {{uri: ..., weight: ...}}"
        )
    sources = {}
    for name, spec in raw.items():
        where = f"sources.{name}"
        if not str(name).replace("-", "_").isidentifier() or str(name) == "base":
            raise ConfigError(
                f"{where}: {name!r} is no source name; use letters, digits, '_' and '-', "
                "starting with a letter; 'base' is taken"
            )
        if isinstance(spec, str):
            spec = {"uri": spec}
        if not isinstance(spec, Mapping) or not isinstance(spec.get("uri"), str):
            raise ConfigError(f"{where} is {spec!r}; it needs a uri, e.g. {{uri: runs:/4f2c}}")
        others = ("uri", "base", *(["prompts"] if method.activations else []))
        parameters = read_settings(spec, where, others, method.source_parameters, method.name)
        base = spec.get("base")
        if base is not None and not isinstance(base, str):
            raise ConfigError(f"{where}.base is {base!r}; it takes a source URI")
        prompts = spec.get("prompts")
        if prompts is not None and not isinstance(prompts, str):
            raise ConfigError(f"{where}.prompts is {prompts!r}; it takes a file of texts")
        sources[str(name)] = SourceSpec(spec["uri"], base, parameters, prompts)
    return sources
