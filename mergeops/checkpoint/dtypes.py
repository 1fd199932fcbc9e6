"""Number formats: their safetensors names, their sizes, and what may be done with them."""

from __future__ import annotations

from mergeops.lazy_torch import torch

_FORMATS = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
}
"""safetensors name -> torch's word, bytes of one element."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Formats that are merged; the others are copied where all inputs agree, but FP8, whose numbers are
read with their scales."""

SIZES = {name: size for name, (_, size) in _FORMATS.items()}

BY_WORD = {word: name for name, (word, _) in _FORMATS.items() if name in FLOATS}
"""The recipe's word for a format -> its safetensors name."""


def item_size(name: str) -> int:
    """Bytes of one element."""
    return SIZES[name]


def word(name: str) -> str:
    """How torch and config.json call a format, e.g. ``bfloat16``."""
    return _FORMATS[name][0]


def torch_dtype(name: str) -> torch.dtype:
    """torch's type for a format."""
    dtype: torch.dtype = getattr(torch, word(name))
    return dtype
