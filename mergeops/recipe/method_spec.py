"""The merge method as a recipe names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergeops import methods
from mergeops.errors import ConfigError
from mergeops.schema import build


@dataclass(frozen=True)
class MethodSpec:
    """The merge method and its global parameters (see ``mergeops methods NAME``)."""

    name: str
    parameters: Any
    """The method's own frozen parameter dataclass."""
    prompts: str | None = None
    """A file of texts (.txt, .jsonl) by which activations are measured, for methods that need
    them; of each source that has none of its own."""

    def to_dict(self) -> dict[str, Any]:
        """As ``read_method`` reads it."""
        prompts = {"prompts": self.prompts} if self.prompts else {}
        return {"name": self.name, **prompts, **dataclasses.asdict(self.parameters)}


def read_method(raw: Any) -> tuple[MethodSpec, methods.Method]:
    """Check what is written as ``method``.

    Raises:
        ConfigError: it names no method, a parameter is wrong, or the prompts are missing.
    """
    if raw is None:
        raise ConfigError(f"method is missing; choose one of: {', '.join(methods.names())}")
    if isinstance(raw, str):
        raw = {"name": raw}
    if not isinstance(raw, Mapping) or "name" not in raw:
        raise ConfigError(f"method is {raw!r}; write method=NAME, or a mapping with a name")
    method = methods.get(str(raw["name"]))
    parameters = {k: v for k, v in raw.items() if k != "name"}
    prompts = parameters.pop("prompts", None) if method.activations else None
    if prompts is not None and not isinstance(prompts, str):
        raise _no_prompts(method.name, prompts)
    built = build(method.parameters, parameters, "method.")
    return MethodSpec(method.name, built, prompts), method


def check_prompts(method: MethodSpec, of_sources: Mapping[str, str | None]) -> None:
    """Refuse a method that reads prompts where it has none for a source.

    Args:
        method: may have prompts for all.
        of_sources: source -> its own.

    Raises:
        ConfigError: says which source has none.
    """
    if not methods.get(method.name).activations or method.prompts is not None:
        return
    lacking = [name for name, prompts in of_sources.items() if prompts is None]
    if lacking or not of_sources:
        raise _no_prompts(method.name, None, *lacking[:1])


def _no_prompts(method: str, prompts: Any, source: str = "NAME") -> ConfigError:
    return ConfigError(
        f"method.prompts is {prompts!r}; {method} needs a file of texts (.txt, .jsonl) by which "
        f"the sources' activations are measured, for all or as sources.{source}.prompts"
    )


def check_measured(method: MethodSpec, merges: Mapping[str, MethodSpec]) -> None:
    """Refuse to measure activations of models that other merges have to make first.

    Raises:
        ConfigError: says which method does.
    """
    if not merges:
        return
    specs = {f"merges.{name}.method": spec for name, spec in merges.items()}
    for key, spec in {"method": method, **specs}.items():
        if methods.get(spec.name).activations:
            raise ConfigError(
                f"{key} is {spec.name}, whose activations are measured before a merge is planned; "
                "make the merges that it goes with first, by recipes of their own"
            )
