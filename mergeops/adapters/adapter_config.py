"""adapter_config.json: what an adapter says of itself, checked before anybody acts on it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.adapters.kinds import NOW_CALLED, why_not_exact
from mergeops.checkpoint import ADAPTER_CONFIG, read_json
from mergeops.errors import ConfigError, SourceError
from mergeops.schema import convert

LONGEST_NAME, LARGEST_RANK = 4096, 1 << 20

_TEXTS = tuple[str, ...] | str | None
_NUMBERS = tuple[int, ...] | int | None
SETTINGS: dict[str, Any] = {
    "peft_type": str,
    "base_model_name_or_path": str | None,
    "revision": str | None,
    "task_type": str | None,
    "bias": str,
    "inference_mode": bool,
    "fan_in_fan_out": bool,
    "use_rslora": bool,
    "use_dora": bool,
    "use_qalora": bool,
    "lora_bias": bool,
    "ensure_weight_tying": bool,
    "save_projection": bool,
    "target_modules": _TEXTS,
    "exclude_modules": _TEXTS,
    "modules_to_save": _TEXTS,
    "feedforward_modules": _TEXTS,
    "layers_pattern": _TEXTS,
    "layers_to_transform": _NUMBERS,
    "target_parameters": tuple[str, ...] | None,
    "alpha_pattern": Mapping[str, float] | None,
    "lambda_pattern": Mapping[str, float] | None,
    "block_size_pattern": Mapping[str, int] | None,
    "n_frequency_pattern": Mapping[str, int] | None,
}
"""Key -> type, for keys that mean the same in every kind that has them."""
_FOUR_BIT = re.compile(r"(-unsloth)?-bnb-4bit/?$")
OWN_RANKS = ("ADALORA", "OSF")
"""Kinds whose rank_pattern holds something else than a rank for a pattern."""
MAY_BE_ZERO = ("OFT",)
"""Kinds in which a rank of zero means that something else decides."""


@dataclass(frozen=True)
class AdapterConfig:
    """What the config says, with types and bounds checked."""

    shown: str
    """What messages call the file's directory."""
    peft_type: str
    """PEFT's word in capitals, e.g. ``LORA``."""
    base_name: str | None
    """The model that was trained: a hub's ORG/NAME or a path on the machine that trained it."""
    revision: str | None
    """The base's branch, tag or commit on the hub."""
    content: Mapping[str, Any]
    """All of the file."""

    @property
    def kind(self) -> str:
        """One word for people, e.g. ``lora``, ``dora``, ``loha``."""
        return "dora" if self.content.get("use_dora") else self.peft_type.lower()

    @property
    def problem(self) -> str | None:
        """Why no weights stand exactly for base and adapter, and what to do; None where they do.

        It goes by the config alone: the tensors may still not fit.
        """
        return why_not_exact(self.peft_type, self.content)

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of the file; ``default`` where it is missing or null."""
        value = self.content.get(key)
        return default if value is None else value


def read_adapter_config(directory: Path) -> AdapterConfig:
    """The config of an adapter's directory.

    Raises:
        SourceError: as ``checked``, or the file is missing or no JSON object.
    """
    return checked(read_json(directory / ADAPTER_CONFIG), str(directory))


def checked(content: Mapping[str, Any], shown: str) -> AdapterConfig:
    """The config from a file's content, which anybody may have written.

    Args:
        content: the JSON object.
        shown: what messages call the directory.

    Raises:
        SourceError: a value has another type than PEFT gives it, or is out of bounds; names the
            key, the value and what is allowed.
    """
    where = f"{shown}: {ADAPTER_CONFIG}: "
    for key, value in _leaves(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise SourceError(f"{where}{key} is {value!r}; it takes a finite number")
        if isinstance(value, str) and not value.isascii() and not _is_text(value):
            raise SourceError(f"{where}{key} is {value[:80]!r}, which is no Unicode text")
    if "peft_type" not in content:
        raise SourceError(f"{where}peft_type is missing, so nobody can say how it is applied")
    values = {}
    for key, hint in SETTINGS.items():
        if key in content:
            values[key] = _converted(where, key, content[key], hint)
    peft_type = NOW_CALLED.get(values["peft_type"], values["peft_type"])
    lowest = 0 if peft_type in MAY_BE_ZERO else 1
    for key in ("r", "init_r"):
        if content.get(key) is not None:
            _check_rank(where, key, content[key], lowest)
    if peft_type not in OWN_RANKS and content.get("rank_pattern") is not None:
        ranks = _converted(where, "rank_pattern", content["rank_pattern"], Mapping[str, Any])
        for pattern, rank in ranks.items():
            _check_rank(where, f"rank_pattern.{pattern}", rank, lowest)
    if content.get("lora_alpha") is not None:
        _check_positive(where, "lora_alpha", content["lora_alpha"])
    for pattern, alpha in (values.get("alpha_pattern") or {}).items():
        _check_positive(where, f"alpha_pattern.{pattern}", alpha)
    for key in ("base_model_name_or_path", "revision"):
        name = values.get(key) or ""
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise SourceError(
                f"{where}{key} is {name[:80]!r}, {len(name)} characters; it takes a printable name "
                f"of at most {LONGEST_NAME}"
            )
    return AdapterConfig(
        shown=shown,
        peft_type=peft_type,
        base_name=values.get("base_model_name_or_path") or None,
        revision=values.get("revision") or None,
        content=dict(content),
    )


def in_full_precision(name: str) -> str:
    """The name of the model whose weights a 4-bit repository holds rounded, as Unsloth and others
    name them; other names as they are."""
    return _FOUR_BIT.sub("", name)


def _converted(where: str, key: str, value: Any, hint: Any) -> Any:
    try:
        return convert(f"{where}{key}", value, hint)
    except ConfigError as error:
        raise SourceError(str(error)) from error


def _check_rank(where: str, key: str, value: Any, lowest: int) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not lowest <= value <= LARGEST_RANK:
        raise SourceError(
            f"{where}{key} is {value!r}; it takes a whole number from {lowest} to {LARGEST_RANK}"
        )


def _check_positive(where: str, key: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < 1e30:
        raise SourceError(f"{where}{key} is {value!r}; it takes a positive number")


def _is_text(value: str) -> bool:
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in value)


def _leaves(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key, and every value that is no container, with the key it stands under."""
    waiting: list[tuple[str, Any]] = list(content.items())
    yield from ((repr(key), key) for key in content)
    while waiting:
        at, value = waiting.pop()
        if isinstance(value, Mapping):
            yield from ((at, key) for key in value)
            waiting += ((f"{at}.{key}", inner) for key, inner in value.items())
        elif isinstance(value, list):
            waiting += ((at, inner) for inner in value)
        else:
            yield at, value
