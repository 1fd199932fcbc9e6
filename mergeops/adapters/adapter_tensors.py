"""The tensors of an adapter's file, sorted by the module of the model that they change."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

PREFIX = "base_model.model."
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that a compiler or a distributed trainer puts in."""
OTHER_BEGINNINGS = {"LOHA": "hada_", "ADALORA": "lora_"}
"""Kinds whose tensors do not begin with the kind's own name."""
NOW_BEGINS = ("bone_", "miss_")
"""How the tensors of a kind began in older versions of PEFT, and begin now."""

_NAMED = re.compile(r"(lora_(?:A|B|embedding_A|embedding_B))\.(?!weight$|bias$)([^.]+)(\..+)?$")


@dataclass(frozen=True)
class ModuleTensors:
    """What an adapter's file holds for one module."""

    module: str
    """Its name in memory."""
    depth: int
    """How many other adapters of the same module lie around this one: several parameters of one
    module are adapted by layers inside each other."""
    parts: dict[str, str] = field(default_factory=dict)
    """Name behind the module's, as PEFT writes it, e.g. ``lora_A.weight`` -> key in the file."""


@dataclass(frozen=True)
class SortedTensors:
    """An adapter's file."""

    modules: tuple[ModuleTensors, ...]
    replaced: dict[str, str]
    """Tensor of the model, by its name in memory -> key of the one that takes its place."""
    untrained: dict[str, str]
    """Tensor of a saved module, by its name in memory -> key of what it was before."""
    rows: dict[str, str]
    """Module whose rows of some tokens are replaced -> key of the rows."""
    shared: dict[str, str]
    """What no module has for itself, as PEFT writes it -> key."""


def sort_tensors(peft_type: str, keys: Iterable[str]) -> SortedTensors:
    """Say of every key what it changes."""
    beginning = OTHER_BEGINNINGS.get(peft_type, f"{peft_type.lower()}_")
    modules: dict[tuple[str, int], ModuleTensors] = {}
    replaced: dict[str, str] = {}
    untrained: dict[str, str] = {}
    rows: dict[str, str] = {}
    shared: dict[str, str] = {}
    keys = list(keys)
    named = _adapter_name(keys)
    for key in keys:
        words = [word for word in key.split(".") if word not in WRAPPERS]
        name = ".".join(words).removeprefix(PREFIX)
        words = name.split(".")
        if peft_type == "MISS":
            words = [word.replace(*NOW_BEGINS) for word in words]
        if "original_module" in words:
            untrained[".".join(word for word in words if word != "original_module")] = key
            continue
        at = next((i for i, word in enumerate(words) if word.startswith(beginning)), None)
        if words[-1] == "trainable_tokens_delta":
            rows[".".join(word for word in words[:-1] if word != "token_adapter")] = key
        elif at is None:
            replaced[_of_model(words)] = key
        elif at == 0 or words[:at] == ["base_model"]:
            shared[name] = key
        else:
            inside = words[:at]
            depth = inside.count("base_layer")
            module = ".".join(word for word in inside if word != "base_layer")
            part = ".".join(words[at:])
            if named:
                part = part.replace(f".{named}", "", 1)
            found = modules.setdefault((module, depth), ModuleTensors(module, depth))
            found.parts[part] = key
    return SortedTensors(tuple(modules.values()), replaced, untrained, rows, shared)


def _adapter_name(keys: Iterable[str]) -> str | None:
    """The adapter's name, where the file was not written by PEFT's own save and still has it."""
    names = Counter(match.group(2) for key in keys if (match := _NAMED.search(key)))
    return next(iter(names)) if len(names) == 1 else None


def _of_model(words: list[str]) -> str:
    """The name of a tensor that PEFT keeps a copy of."""
    if "modules_to_save" in words:
        # Old versions put the adapter's name behind it.
        at = words.index("modules_to_save")
        rest = words[at + 1 :]
        words = words[:at] + (rest[1:] if rest[:1] == ["default"] else rest)
    return ".".join(word for word in words if word not in ("base_layer", "token_adapter"))
