"""A LoRA adapter on its base, read as if it were a full checkpoint.

Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1: W + alpha / r * B A; with rsLoRA
(Kalajdzievski 2023, https://arxiv.org/abs/2312.03732) W + alpha / sqrt(r) * B A. Files and keys
are PEFT's. What this cannot apply exactly is refused, never approximated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.checkpoint.dtypes import FLOATS
from mergeops.checkpoint.header import StoredTensor
from mergeops.checkpoint.layout import (
    ADAPTER,
    ADAPTER_CONFIG,
    PICKLED_ADAPTER,
    Checkpoint,
    FileStamp,
    open_checkpoint,
    read_headers,
    read_json,
)
from mergeops.checkpoint.reader import Bytes, CheckpointReader, as_tensor, read_range, read_tensor
from mergeops.errors import SourceError
from mergeops.lazy_torch import torch

PREFIX = "base_model.model."
BLOCK_ELEMENTS = 65536
"""B A is computed for blocks of whole rows of about this size, wherever a read begins."""

READ = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "peft_type", "bias"}
# Settings that matter for training only, or whose effect is already in the adapter's tensors.
WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
}
# Other initialisations (pissa, olora, loftq, ...) change the base's weights, too.
PLAIN_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class LoraPair:
    """One adapted weight."""

    a: str
    """Key of A ``[r, columns]`` in the adapter."""
    b: str
    """Key of B ``[rows, r]``."""
    scale: float


@dataclass(frozen=True)
class Adapter:
    """The headers of an adapter and of its base."""

    base: Checkpoint
    adapter: Checkpoint
    pairs: Mapping[str, LoraPair]
    """Base tensor -> what is added to it."""
    replaced: Mapping[str, str]
    """Base tensor -> adapter tensor that takes its place: of modules_to_save, and the copy of an
    adapted output head that PEFT keeps with the adapter."""

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """The base's tensors: an adapter changes neither names nor shapes."""
        return self.base.tensors


def open_adapter(path: Path, base: Path) -> Adapter:
    """Read and check an adapter's config and headers against its base's headers.

    Raises:
        SourceError: something is missing, does not fit, or cannot be applied exactly.
    """
    if not (path / ADAPTER).exists():
        pickled = f" it has {PICKLED_ADAPTER};" if (path / PICKLED_ADAPTER).exists() else ""
        raise SourceError(
            f"{path} has no {ADAPTER};{pickled} save the adapter again with safe_serialization=True"
        )
    config = read_json(path / ADAPTER_CONFIG)
    _refuse_unsupported(path, config)
    full, adapter = open_checkpoint(base), read_headers(path, [ADAPTER])
    pairs: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for key in adapter.tensors:
        target, part = _target(key)
        if target not in full.tensors:
            raise SourceError(f"{path}: {key} applies to {target}, which {base} does not have")
        if part:
            pairs.setdefault(target, {})[part] = key
        else:
            replaced[target] = key
            _check_shape(path, key, adapter.tensors[key].shape, full.tensors[target].shape)
    return Adapter(
        full,
        adapter,
        {name: _pair(path, config, full, adapter, name, keys) for name, keys in pairs.items()},
        replaced,
    )


class AdapterReader:
    """Reads the adapted model; adapted tensors come in the compute dtype.

    Args:
        adapter: from ``open_adapter``.
        compute: F32 or F64.
        base_stamps: what the base's files must look like.
        adapter_stamps: what the adapter's file must look like.

    Raises:
        SourceError: a file is missing or changed.
    """

    def __init__(
        self,
        adapter: Adapter,
        compute: str,
        base_stamps: Mapping[str, FileStamp] | None = None,
        adapter_stamps: Mapping[str, FileStamp] | None = None,
    ) -> None:
        self._adapter = adapter
        self._compute = compute
        self._base = CheckpointReader(adapter.base, base_stamps)
        try:
            self._own = CheckpointReader(adapter.adapter, adapter_stamps)
        except SourceError:
            self._base.close()
            raise
        self._cached_a: tuple[str, torch.Tensor] | None = None

    def read(self, name: str, start: int, stop: int, staging: Bytes) -> str:
        """See ``TensorReader``."""
        reader, key, checkpoint = self._base, name, self._adapter.base
        if name in self._adapter.replaced:
            reader, checkpoint = self._own, self._adapter.adapter
            key = self._adapter.replaced[name]
        if name not in self._adapter.pairs:
            return reader.read(key, start, stop, staging)
        stored = checkpoint.tensors[key]
        weights = read_range(reader, key, start, stop).double()
        weights += self._change(self._adapter.pairs[name], stored.shape[1], start, stop)
        as_tensor(staging, self._compute, stop - start).copy_(weights)
        return self._compute

    def prefetch(self, name: str, start: int, stop: int) -> None:
        """See ``TensorReader``."""
        if name not in self._adapter.replaced:
            self._base.prefetch(name, start, stop)

    def check_unchanged(self) -> None:
        """See ``TensorReader``."""
        self._base.check_unchanged()
        self._own.check_unchanged()

    def close(self) -> None:
        """See ``TensorReader``."""
        self._base.close()
        self._own.close()

    def _change(self, pair: LoraPair, columns: int, start: int, stop: int) -> torch.Tensor:
        """Elements ``start`` to ``stop`` of the flattened scale * B A, in float64.

        In float64 whatever the compute dtype: how a matrix product rounds depends on its size,
        threads and CPU, and the difference is gone after rounding to float32.
        """
        cached = self._cached_a
        if cached is None or cached[0] != pair.a:
            cached = self._cached_a = (pair.a, read_tensor(self._own, pair.a).double())
        a = cached[1]
        rank = a.shape[0]
        rows = max(1, BLOCK_ELEMENTS // columns)
        first = start // columns // rows
        last = -(-stop // columns) if stop else 0
        parts = []
        for block in range(first, -(-last // rows)):
            begin = block * rows
            end = min(begin + rows, self._own.stored(pair.b).shape[0])
            b = read_range(self._own, pair.b, begin * rank, end * rank).view(-1, rank).double()
            parts.append((b @ a).mul_(pair.scale).view(-1))
        skip = start - first * rows * columns
        return torch.cat(parts)[skip : skip + stop - start]


def _refuse_unsupported(path: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise SourceError(
            f"{path}: peft_type is {config.get('peft_type')!r}; only LORA is supported"
        )
    if config.get("bias", "none") != "none":
        raise SourceError(f"{path}: bias is {config['bias']!r}; only none is supported")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_INITIALISATIONS:
        raise SourceError(
            f"{path}: init_lora_weights is {start!r}, which changes the base's weights, too; "
            "convert the adapter to plain LoRA with PEFT first"
        )
    for key, value in config.items():
        if key not in READ | WITHOUT_EFFECT | {"init_lora_weights"} and value:
            raise SourceError(
                f"{path}: {key} is {value!r}, which mergeops cannot apply; merge the adapter into "
                "its base with PEFT's merge_and_unload and use the result"
            )


def _target(key: str) -> tuple[str, str]:
    """The base tensor that an adapter's key belongs to, and which factor it is (a, b or none)."""
    name = key.removeprefix(PREFIX)
    for part, suffix in (("a", ".lora_A.weight"), ("b", ".lora_B.weight")):
        if name.endswith(suffix):
            return name.removesuffix(suffix) + ".weight", part
    if "lora_embedding_" in name or "lora_magnitude_vector" in name or ".lora_" in name:
        raise SourceError(
            f"adapter tensor {key} is of a kind that mergeops cannot apply; merge the adapter into "
            "its base with PEFT's merge_and_unload and use the result"
        )
    return name.replace(".modules_to_save.", ".").replace(".base_layer.", "."), ""


def _pair(
    path: Path,
    config: Mapping[str, Any],
    full: Checkpoint,
    adapter: Checkpoint,
    name: str,
    keys: Mapping[str, str],
) -> LoraPair:
    for part in ("a", "b"):
        if part not in keys:
            raise SourceError(f"{path}: {name} has no lora_{part.upper()}")
    a, b = (adapter.tensors[keys[part]] for part in ("a", "b"))
    for tensor in (a, b, full.tensors[name]):
        if tensor.dtype not in FLOATS or len(tensor.shape) != 2:
            raise SourceError(
                f"{path}: {tensor.name} is {tensor.dtype} {list(tensor.shape)}; LoRA is supported "
                "on matrices of real numbers"
            )
    module = name.removesuffix(".weight")
    rank = _setting(path, config, "rank_pattern", module, "r")
    alpha = _setting(path, config, "alpha_pattern", module, "lora_alpha")
    _check_shape(path, keys["a"], a.shape, (int(rank), full.tensors[name].shape[1]))
    _check_shape(path, keys["b"], b.shape, (full.tensors[name].shape[0], int(rank)))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraPair(keys["a"], keys["b"], scale)


def _setting(
    path: Path, config: Mapping[str, Any], patterns: str, module: str, default: str
) -> float:
    """A number that a pattern may set for some modules: as PEFT, the first pattern that matches."""
    value = config.get(default)
    for pattern, special in (config.get(patterns) or {}).items():
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise SourceError(f"{path}: {patterns} has {pattern!r}, no pattern: {error}") from error
        if matches:
            value = special
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise SourceError(f"{path}: {default} of {module} is {value!r}; it takes a positive number")
    return float(value)


def _check_shape(path: Path, key: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise SourceError(
            f"{path}: {key} has shape {list(shape)}, but its base and rank ask for {list(expected)}"
        )
