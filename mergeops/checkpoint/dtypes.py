"""Number formats: their safetensors names, their sizes, and what may be done with them."""

from __future__ import annotations

from mergeops.deferred import torch

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Formats that are merged -> bytes of one element."""

WHOLE = {
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
"""Formats that are copied where all inputs agree -> bytes of one element."""

SIZES = FLOATS | WHOLE

BY_WORD = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
"""The recipe's word for a format -> its safetensors name."""

_WORDS = {name: word for word, name in BY_WORD.items()} | {
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def item_size(name: str) -> int:
    """Bytes of one element."""
    return SIZES[name]


def word(name: str) -> str:
    """How torch and config.json call a format, e.g. ``bfloat16``."""
    return _WORDS[name]


def torch_dtype(name: str) -> torch.dtype:
    """torch's type for a format."""
    found: torch.dtype = getattr(torch, _WORDS[name])
    return found
