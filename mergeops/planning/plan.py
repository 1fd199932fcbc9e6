"""The plan: what will be done to which tensor, decided from headers and configs only.

A plan is pure data: it can be written as JSON, executed elsewhere, and compared. Its digest names
the work: equal digests give equal bytes, so work that is done is found by it. Only weights,
parameters and the small files that are copied count; where the inputs were found does not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mergeops.checkpoint import FLOATS, INDEX, SINGLE, encode_header, item_size, word
from mergeops.planning.companions import Companion, write_companions
from mergeops.planning.inputs import PlannedInput
from mergeops.planning.tokens.vocabulary_layout import VocabularyLayout
from mergeops.schema import build

FORMAT = 1
"""Raised when the engine writes other bytes for the same plan."""


@dataclass(frozen=True)
class TensorPart:
    """One input of a tensor of the result."""

    input: int
    """Position in ``Plan.inputs``."""
    tensor: str
    """Its name there."""


@dataclass(frozen=True, kw_only=True)
class TensorTask:
    """One tensor of the result."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """safetensors name of the format it is saved in."""
    kind: str
    """merge; copy for whole numbers, which all inputs must agree on; take for real numbers that
    are not merged, since one input alone has them."""
    shared: Mapping[str, float]
    """Global parameters as the rules leave them."""
    per_source: Mapping[str, tuple[float, ...]]
    """Source parameters, in the order of the sources."""
    base: TensorPart | None = None
    """What the base of this tensor is, where ``sources`` says what its sources are."""
    sources: tuple[TensorPart, ...] = ()
    """What it is merged from; empty stands for the tensor of this name of every source."""

    @cached_property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @cached_property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * item_size(self.dtype)


@dataclass(frozen=True)
class Shard:
    """One safetensors file of the result."""

    name: str
    tensors: tuple[TensorTask, ...]
    """In the order of the data."""

    @cached_property
    def header(self) -> bytes:
        """What the file begins with."""
        return encode_header({t.name: (t.dtype, t.shape) for t in self.tensors})

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


def cut_into_shards(tasks: Iterable[TensorTask], limit: int) -> tuple[Shard, ...]:
    """Fill files with at most ``limit`` bytes of tensors, in order; a larger tensor has its own.

    Inside a file, wider formats come first, so that every tensor is aligned to its element size.
    """
    groups: list[list[TensorTask]] = [[]]
    filled = 0
    for task in tasks:
        if groups[-1] and filled + task.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(task)
        filled += task.nbytes
    for group in groups:
        group.sort(key=lambda task: -item_size(task.dtype))
    if len(groups) == 1:
        return (Shard(SINGLE, tuple(groups[0])),)
    n = len(groups)
    return tuple(
        # As Hugging Face names them.
        Shard(f"model-{i:05d}-of-{n:05d}.safetensors", tuple(group))
        for i, group in enumerate(groups, start=1)
    )


@dataclass(frozen=True)
class PlannedActivations:
    """What was measured of one source."""

    path: str
    """The directory; no part of the digest."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that ``execute.merge`` needs to know."""

    method: str
    method_version: int
    parameters: Mapping[str, Any]
    """The method's global parameters."""
    base: PlannedInput | None
    sources: tuple[PlannedInput, ...]
    shards: tuple[Shard, ...]
    companions: tuple[Companion, ...]
    """Small files that are copied: config, tokenizer, chat template."""
    compute: str
    """float32 or float64."""
    seed: int
    recipe: Mapping[str, Any]
    """``Recipe.weights_dict`` of what was planned."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What differs in config.json from the file that is copied, e.g. the number of layers."""
    vocabulary: VocabularyLayout | None = None
    """Where rows of embeddings come from, where inputs have different vocabularies."""
    activations: tuple[PlannedActivations, ...] = ()
    """Of each source, in order, for methods that need them."""
    warnings: tuple[str, ...] = ()
    """What the user should know; no part of the digest."""

    @property
    def is_pinned(self) -> bool:
        """Whether the digests of all inputs are known."""
        return all(planned.sha256 for planned in self.inputs)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of everything that decides the bytes of the result; of a pinned plan."""
        assert self.is_pinned, "inputs are not hashed yet"
        return self._digest_by(lambda planned: planned.sha256)

    @cached_property
    def files_digest(self) -> str:
        """As ``digest``, with the very files of the inputs in place of their digests: what names
        the work before those are known, on this machine."""
        return self._digest_by(lambda planned: planned.files)

    def _digest_by(self, identity: Callable[[PlannedInput], Any]) -> str:
        content = {
            "format": FORMAT,
            "method": [self.method, self.method_version, dict(self.parameters)],
            "base": identity(self.base) if self.base else None,
            "sources": [identity(source) for source in self.sources],
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
            "companions": [companion.identity for companion in self.companions],
            "config": dict(self.config),
            "compute": self.compute,
            "seed": self.seed,
        }
        if self.activations:
            content["activations"] = [measured.sha256 for measured in self.activations]
        renamed = {planned.name: dict(planned.renamed) for planned in self.inputs}
        if any(renamed.values()):
            content["renamed"] = list(renamed.values())
        cut = [
            {name: dataclasses.astuple(place) for name, place in planned.cut.items()}
            for planned in self.inputs
        ]
        if any(cut):
            content["cut"] = cut
        if self.vocabulary is not None:
            names = [planned.name for planned in self.inputs]
            content["vocabulary"] = self.vocabulary.identity(names)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def inputs(self) -> tuple[PlannedInput, ...]:
        """The base, where there is one, and the sources."""
        return (*([self.base] if self.base else []), *self.sources)

    @cached_property
    def tasks(self) -> tuple[TensorTask, ...]:
        """All tensors of the result, in order."""
        return tuple(task for shard in self.shards for task in shard.tensors)

    @property
    def save_dtype(self) -> str:
        """The format that most of the result is in, as config.json words it, e.g. bfloat16."""
        nbytes: Counter[str] = Counter()
        for tensor in self.tasks:
            if tensor.dtype in FLOATS:
                nbytes[tensor.dtype] += tensor.nbytes
        return word(max(nbytes, key=lambda name: nbytes[name])) if nbytes else "float32"

    @cached_property
    def bytes_to_write(self) -> int:
        """Size of all weight files."""
        return sum(shard.nbytes for shard in self.shards)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Plan:
        """Read what ``to_dict`` wrote.

        Raises:
            ConfigError: it is no plan.
        """
        plan: Plan = build(cls, raw, "plan.")
        return plan


def write_small_files(plan: Plan, out: Path) -> list[str]:
    """Write what a plan decides besides the weights: companions, and the index of several files.

    Returns:
        The names written.

    Raises:
        SourceError: a companion changed after the merge was planned.
    """
    names = write_companions(plan.companions, out, plan.save_dtype, plan.config)
    if len(plan.shards) == 1:
        return names
    files = [(task.name, shard.name) for shard in plan.shards for task in shard.tensors]
    index = {
        "metadata": {"total_size": sum(task.nbytes for task in plan.tasks)},
        "weight_map": dict(sorted(files)),
    }
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*names, INDEX]
