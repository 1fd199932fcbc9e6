"""Stacks: which tensors belong to which layer, and where config.json says how many there are.

Read off the tensor names and the config, with no table of architectures: a stack is a prefix that
whole numbers follow, 0 to n - 1, where some setting of the config is n.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeops.errors import ConfigError, MergeError

COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "decoder_layers",
    "encoder_layers",
    "depth",
)
"""Settings that count layers."""
INDEX_LISTS = (
    "mlp_only_layers",
    "cross_attention_layers",
    "moe_layers",
    "attn_layer_indices",
    "full_attn_idxs",
    "fullatt_block_indexes",
    "deepstack_visual_indexes",
)
"""Settings that list layers by number."""
LEADING_COUNTS = ("first_k_dense_replace", "num_dense_layers")
"""Settings that count layers of one kind, which come first."""
SECTIONS = {
    "vision": ("vision", "visual", "image"),
    "audio": ("audio", "speech"),
    "text": ("language", "text", "llm"),
}
"""Kind of stack -> what its prefix says; its settings may be in ``<kind>_config``."""

_LAYER = re.compile(r"^(.*?\.)?(\d+)\.(.+)$")


@dataclass(frozen=True)
class Stack:
    """One stack of layers."""

    prefix: str
    """What the names of its tensors begin with, before the number."""
    count: int
    kind: str
    """encoder, decoder, vision, audio or text."""
    section: tuple[str, ...]
    """Where in the config its settings are."""
    keys: tuple[str, ...]
    """The settings there that count its layers."""

    def layer(self, tensor: str) -> tuple[int, str] | None:
        """Number of a tensor's layer and the rest of its name; None outside the stack."""
        match = _LAYER.match(tensor)
        if match is None or (match.group(1) or "") != self.prefix:
            return None
        return int(match.group(2)), match.group(3)


def find_stacks(names: Iterable[str], config: Mapping[str, Any]) -> list[Stack]:
    """All stacks whose number of layers the config knows, in the order of the names."""
    layers: dict[str, set[int]] = {}
    for name in names:
        match = _LAYER.match(name)
        if match is not None:
            layers.setdefault(match.group(1) or "", set()).add(int(match.group(2)))
    stacks = []
    for prefix, numbers in layers.items():
        n = len(numbers)
        if numbers != set(range(n)):
            continue
        kind = _kind(prefix)
        for section in _sections(kind, config):
            keys = _keys(kind, get(config, section), n)
            if keys:
                stacks.append(Stack(prefix, n, kind, section, keys))
                break
    return stacks


def pick(stacks: Sequence[Stack], word: str | None) -> Stack:
    """The stack that a recipe's module names, by kind, by prefix or by a part of it.

    None or ``default`` asks for the only one, or for the language model's.

    Raises:
        ConfigError: there is none, or it could be several.
    """
    if not stacks:
        raise MergeError(
            "slices need layers, but no numbered tensors are as many as a setting of config.json "
            f"({', '.join(COUNTS[:4])}, ...) says"
        )
    if word in (None, "default"):
        if len(stacks) == 1:
            return stacks[0]
        of_text = [stack for stack in stacks if stack.kind == "text"]
        if len(of_text) == 1:
            return of_text[0]
        others = [stack for stack in stacks if stack.kind not in ("vision", "audio")]
        if len(others) == 1:
            return others[0]
        raise ConfigError(f"the model has several stacks of layers; use modules: {_names(stacks)}")
    assert word is not None
    wanted = word.rstrip(".")
    picked = [stack for stack in stacks if stack.prefix.rstrip(".") == wanted]
    picked = picked or [stack for stack in stacks if wanted in stack.prefix.split(".")]
    kinds = {"language_model": "text", "vision_tower": "vision", "audio_tower": "audio"}
    kind = kinds.get(wanted, wanted.split("_")[0])
    picked = picked or [stack for stack in stacks if stack.kind == kind]
    if len(picked) != 1:
        raise ConfigError(f"modules.{word} is no stack of layers; allowed: {_names(stacks)}")
    return picked[0]


def resized(
    stack: Stack, config: Mapping[str, Any], layers: Sequence[tuple[Mapping[str, Any], int]]
) -> dict[str, Any]:
    """What changes in config.json when a stack gets other layers.

    Args:
        stack: the stack in the config's model.
        config: the config that is copied.
        layers: for each layer of the result, the config it comes from and its number there.

    Returns:
        The settings that change, nested as in the config.

    Raises:
        MergeError: layers that must come first would not.
    """
    ours = get(config, stack.section)
    changes: dict[str, Any] = dict.fromkeys(stack.keys, len(layers))
    for key, value in ours.items():
        if key in LEADING_COUNTS and isinstance(value, int):
            changes[key] = _leading(stack, key, [(get(c, stack.section), i) for c, i in layers])
        elif key in INDEX_LISTS and isinstance(value, list):
            changes[key] = [
                k for k, (c, i) in enumerate(layers) if i in (get(c, stack.section).get(key) or ())
            ]
        elif isinstance(value, list) and len(value) == stack.count and is_per_layer(key):
            changes[key] = [_item(c, stack.section, key, i, value) for c, i in layers]
    if "attention_types" in ours and "attention_layers" in changes:
        # GPT-Neo counts its layers by this pair of a pattern and a number of repetitions.
        changes["attention_types"] = [[changes["attention_layers"], 1]]
    for name in reversed(stack.section):
        changes = {name: changes}
    return changes


def _leading(stack: Stack, key: str, layers: Sequence[tuple[Mapping[str, Any], int]]) -> int:
    """How many of the result's layers are of the kind that comes first."""
    are_first = [i < (config.get(key) or 0) for config, i in layers]
    count = are_first.index(False) if False in are_first else len(are_first)
    if any(are_first[count:]):
        raise MergeError(
            f"layer {count + are_first[count:].index(True)} of the merge is one of those that "
            f"{key} counts, which must come before all others of {stack.prefix}*; put its slice "
            "first"
        )
    return count


def is_per_layer(key: str) -> bool:
    """Whether a list of this name that is as long as the stack has an entry for each layer."""
    return any(word in key for word in ("layer", "block", "rope", "head", "intermediate", "window"))


def get(config: Mapping[str, Any], section: Sequence[str]) -> Mapping[str, Any]:
    """A part of a config; empty where it has none."""
    for name in section:
        inner = config.get(name)
        config = inner if isinstance(inner, Mapping) else {}
    return config


def _item(
    config: Mapping[str, Any], section: tuple[str, ...], key: str, i: int, default: list[Any]
) -> Any:
    theirs = get(config, section).get(key)
    values = theirs if isinstance(theirs, list) and i < len(theirs) else default
    return values[i] if i < len(values) else values[-1]


def _kind(prefix: str) -> str:
    lower = prefix.lower()
    for kind, words in SECTIONS.items():
        if any(word in lower for word in words):
            return kind
    parts = lower.split(".")
    for kind in ("encoder", "decoder"):
        if kind in parts:
            return kind
    return "text"


def _sections(kind: str, config: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Where a stack's settings may be, the likeliest first."""
    own = [(name,) for name, value in config.items() if isinstance(value, Mapping)]
    wanted = [
        s for s in own if s[0].startswith(kind) or s[0].startswith(SECTIONS.get(kind, (kind,)))
    ]
    if kind in ("vision", "audio"):
        return [*wanted, (), *(s for s in own if s not in wanted)]
    return [*wanted, ()]


def _keys(kind: str, config: Mapping[str, Any], n: int) -> tuple[str, ...]:
    """The settings that count n layers, and none of those for the other half of a pair."""
    # Encoder-decoders count both, and call the encoder's number by the plain name, too.
    other = {"encoder": "decoder", "decoder": "encoder"}.get(kind)
    has_own = any(kind in key and key in COUNTS for key in config)
    keys = []
    for key in COUNTS:
        if config.get(key) != n or isinstance(config.get(key), bool):
            continue
        if other is not None and other in key:
            continue
        if kind == "decoder" and has_own and kind not in key:
            continue
        keys.append(key)
    return tuple(keys)


def _names(stacks: Sequence[Stack]) -> str:
    return ", ".join(stack.prefix.rstrip(".") for stack in stacks)
