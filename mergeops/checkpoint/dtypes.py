"""Number formats: their safetensors names, their torch types, and what may be done with them."""

from __future__ import annotations

import torch

FLOATS: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Formats that are merged."""

WHOLE: dict[str, torch.dtype] = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Formats that are copied where all inputs agree."""

DTYPES = FLOATS | WHOLE

BY_WORD = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
"""The recipe's word for a format -> its safetensors name."""


def item_size(name: str) -> int:
    """Bytes of one element."""
    return DTYPES[name].itemsize


def word(name: str) -> str:
    """How torch and config.json call a format, e.g. ``bfloat16``."""
    return str(DTYPES[name]).removeprefix("torch.")
