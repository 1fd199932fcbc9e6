"""Which stored tensors make up which numbers: codes, and the scales beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mergeops.checkpoint.dtypes import BY_WORD
from mergeops.checkpoint.header import StoredTensor
from mergeops.checkpoint.quantised.codes import CodedTensor, ScaledCodes, TransposedExperts
from mergeops.checkpoint.quantised.recognition import is_beside_numbers, said_of
from mergeops.errors import SourceError

_CODES = ("U8", "I8", "I16", "I32")
_SCALES = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")
"""What a module's scale may be called, beside its ``weight``."""
_UNREAD = ("weight_zero_point", "weight_g_idx")
_BLOCK = 128
"""Rows and columns of a block where config.json does not say: DeepSeek's."""


def numbers_in(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], dict[str, CodedTensor]]:
    """What a quantised checkpoint looks like as numbers.

    Args:
        config: config.json's content.
        tensors: as stored.

    Returns:
        Every tensor with its name, shape and format as numbers, in the order of the data; and how
        the coded ones are computed.

    Raises:
        SourceError: codes without a scale that fits; says which.
    """
    coded: dict[str, CodedTensor] = {}
    origin: dict[str, str] = {}
    sides: set[str] = set()
    for name, stored in tensors.items():
        found = _coded(config, name, stored, tensors)
        if found is None:
            continue
        named, numbers, beside = found
        coded[named], origin[name] = numbers, named
        sides.update(beside)
    dtype = BY_WORD.get(str(config.get("dtype") or config.get("torch_dtype")), "BF16")
    presented = {}
    for name, stored in tensors.items():
        if name in origin:
            named = origin[name]
            shape = coded[named].shape
            presented[named] = dataclasses.replace(stored, name=named, dtype=dtype, shape=shape)
        elif name not in sides and not is_beside_numbers(name):
            if stored.dtype.startswith("F8") or (stored.dtype in _CODES and len(stored.shape) > 1):
                raise SourceError(
                    f"{name} is {stored.dtype} {list(stored.shape)}, and no scale that fits lies "
                    "beside it"
                )
            presented[name] = stored
    return presented, coded


def _coded(
    config: Mapping[str, Any],
    name: str,
    stored: StoredTensor,
    tensors: Mapping[str, StoredTensor],
) -> tuple[str, CodedTensor, set[str]] | None:
    """The numbers that a tensor holds the codes of: their name, how, and what belongs to them."""
    if name.endswith("_blocks") and stored.dtype == "U8":
        return _experts(name, stored, tensors)
    module, _, leaf = name.rpartition(".")
    is_packed = leaf == "weight_packed" and stored.dtype == "U8"
    is_float8 = stored.dtype.startswith("F8") and not any(
        name.endswith(("." + scale, "_" + scale)) for scale in (*_SCALES, "scale_inv")
    )
    if not is_packed and not is_float8:
        return None
    named = f"{module}.weight" if is_packed else name
    candidates = [f"{module}.{scale}" for scale in _SCALES]
    if leaf not in ("weight", "weight_packed"):
        candidates = [f"{name}_scale_inv", f"{name}_scale"]
    beside = {key for key in candidates if key in tensors}
    if len(beside) != 1:
        return None
    for key in _UNREAD:
        if f"{module}.{key}" in tensors:
            raise SourceError(f"{module} has a {key}, which is not read")
    (scales,) = (tensors[key] for key in beside)
    divisor = tensors.get(f"{module}.weight_global_scale") if is_packed else None
    if divisor is not None:
        beside.add(divisor.name)
    shape = (*stored.shape[:-1], stored.shape[-1] * 2) if is_packed else stored.shape
    block = _block(config, shape, scales)
    if block is None or (is_packed and block not in ((1, 16), (1, 32))):
        raise SourceError(
            f"{name} has shape {list(stored.shape)} and its scales {scales.name} have "
            f"{list(scales.shape)}, which do not fit each other"
        )
    return named, ScaledCodes(stored, scales, shape, block, divisor), beside


def _experts(
    name: str, stored: StoredTensor, tensors: Mapping[str, StoredTensor]
) -> tuple[str, CodedTensor, set[str]] | None:
    named = name.removesuffix("_blocks")
    scales = tensors.get(f"{named}_scales")
    if scales is None or scales.dtype != "U8":
        return None
    if len(scales.shape) != 3 or stored.shape != (*scales.shape, 16):
        raise SourceError(
            f"{name} has shape {list(stored.shape)} and its scales {scales.name} have "
            f"{list(scales.shape)}; blocks of 16 bytes with one scale each are read"
        )
    return named, TransposedExperts(stored, scales), {scales.name}


def _block(
    config: Mapping[str, Any], shape: tuple[int, ...], scales: StoredTensor
) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None where the shapes do not fit each other."""
    rows, columns = shape[-2] if len(shape) > 1 else 1, shape[-1]
    if scales.numel == 1:
        return (rows, columns) if len(shape) <= 2 else None
    if scales.shape == shape[:-1]:
        return 1, columns
    if len(scales.shape) != len(shape) or scales.shape[:-2] != shape[:-2]:
        return None
    high, wide = scales.shape[-2:]
    for block in _said_blocks(config):
        if (-(-rows // block[0]), -(-columns // block[1])) == (high, wide):
            return block
    if not high or not wide or rows % high or columns % wide:
        return None
    return rows // high, columns // wide


def _said_blocks(config: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Sizes of blocks that config.json names, then the usual one."""
    said = said_of(config)
    groups = said.get("config_groups")
    structures = [said.get("weight_block_size")]
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            structures.append(weights.get("block_structure"))
    for block in [*structures, [_BLOCK, _BLOCK]]:
        if (
            isinstance(block, list)
            and len(block) == 2
            and all(isinstance(side, int) and side > 0 for side in block)
        ):
            yield block[0], block[1]
