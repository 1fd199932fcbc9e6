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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mergeops import methods
from mergeops.assembly import assemble
from mergeops.checkpoint.dtypes import BY_WORD, FLOATS, item_size, word
from mergeops.checkpoint.header import StoredTensor, encode_header
from mergeops.companions import Companion, changed, find_companions
from mergeops.errors import about, key_of, locating
from mergeops.inputs import PlannedInput, config_of, read_input
from mergeops.parameters import resolve_parameters
from mergeops.pieces import Ingredient, Piece
from mergeops.preflight import check_configs, check_sources, check_tokenizers
from mergeops.schema import build
from mergeops.shards import assign_shards, parse_size
from mergeops.slices import BASE
from mergeops.tokens.layout import VocabularyLayout, lay_out_vocabulary, resized
from mergeops.tokens.spec import SAME
from mergeops.views import see

if TYPE_CHECKING:
    from mergeops.recipe import Recipe
    from mergeops.sources import Source

FORMAT = 1
"""Raised when the engine writes other bytes for the same plan."""


@dataclass(frozen=True)
class Part:
    """One input of a tensor of the result."""

    input: int
    """Position in ``Plan.inputs``."""
    tensor: str
    """Its name there."""


@dataclass(frozen=True)
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
    base: Part | None = None
    """What the base of this tensor is, where ``sources`` says what its sources are."""
    sources: tuple[Part, ...] = ()
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


@dataclass(frozen=True)
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
    warnings: tuple[str, ...] = ()
    """What the user should know; no part of the digest."""

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of everything that decides the bytes of the result."""
        content = {
            "format": FORMAT,
            "method": [self.method, self.method_version, dict(self.parameters)],
            "base": self.base.sha256 if self.base else None,
            "sources": [source.sha256 for source in self.sources],
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
            "companions": [companion.identity for companion in self.companions],
            "config": dict(self.config),
            "compute": self.compute,
            "seed": self.seed,
        }
        if self.vocabulary is not None:
            inputs = [*([self.base.name] if self.base else []), *(s.name for s in self.sources)]
            content["vocabulary"] = self.vocabulary.identity(inputs)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def inputs(self) -> tuple[PlannedInput, ...]:
        """The base, where there is one, and the sources."""
        return (*([self.base] if self.base else []), *self.sources)

    def has_base(self, task: TensorTask) -> bool:
        """Whether the first of the task's parts is a base."""
        if task.sources:
            return task.base is not None
        return methods.get(self.method).uses_base(self.base is not None)

    def parts(self, task: TensorTask) -> tuple[Part, ...]:
        """The inputs of a task: the base, where its method uses one, and the sources."""
        if task.sources:
            return (*([task.base] if task.base else []), *task.sources)
        unused = self.base is not None and not self.has_base(task)
        return tuple(Part(i, task.name) for i in range(unused, len(self.inputs)))

    @property
    def save_dtype(self) -> str:
        """The format that most of the result is in, as config.json words it, e.g. bfloat16."""
        size: dict[str, int] = {}
        for shard in self.shards:
            for tensor in shard.tensors:
                if tensor.dtype in FLOATS:
                    size[tensor.dtype] = size.get(tensor.dtype, 0) + tensor.nbytes
        return word(max(size, key=lambda name: size[name])) if size else "float32"

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


def make_plan(recipe: Recipe, base: Source | None, sources: Mapping[str, Source]) -> Plan:
    """Decide everything about a merge, and refuse what cannot work.

    Args:
        recipe: what the user wrote.
        base: the resolved base, where the recipe names one.
        sources: the resolved sources by the recipe's names.

    Raises:
        ConfigError: a parameter, a rule or the shard size is wrong.
        SourceError: an input's files are missing, corrupt or of an unsupported kind.
        MergeError: the inputs do not fit each other or the method.
    """
    with locating("", recipe.origins):
        return _make_plan(recipe, base, sources)


def _make_plan(recipe: Recipe, base: Source | None, sources: Mapping[str, Source]) -> Plan:
    method = methods.get(recipe.method.name)
    shard_bytes = parse_size("output.shard_size", recipe.output.shard_size)
    planned_base, planned_sources, headers = _read_inputs(recipe, base, sources)
    sliced = bool(recipe.slices or recipe.modules)
    with about("method"):
        check_sources(method, planned_base, planned_sources, sliced=sliced)
    inputs = [*([planned_base] if planned_base else []), *planned_sources]
    warnings = [*recipe.notes, *check_configs(inputs, recipe)]
    chosen = _tokenizer_input(recipe, inputs)
    vocabulary = None
    if recipe.tokenizer.source != SAME:
        with about("tokenizer"):
            vocabulary, told = lay_out_vocabulary(
                recipe.tokenizer, inputs, headers, has_base=planned_base is not None
            )
        warnings += told
        headers = resized(headers, vocabulary) if vocabulary else headers
    configs = {planned.name: config_of(planned) for planned in inputs}
    views = see(headers, recipe.tied_head, configs[inputs[0].name])
    assembly = assemble(recipe, method, views.inputs, configs)
    warnings += views.warnings
    if recipe.tokenizer.source == SAME:
        warnings += check_tokenizers(chosen, inputs)
    with about("tokenizer"):
        template = recipe.tokenizer.chat_template
        companions, kept = find_companions(
            inputs, chosen, template, vocabulary, trust_code=recipe.trust_remote_code
        )
    warnings += kept
    compute = recipe.dtype.compute
    if compute != "float64" and (wide := _stored_in_64_bits(assembly.pieces)):
        compute = "float64"
        warnings.append(f"{wide} is stored as float64, so the arithmetic is done in float64")
    tasks = _tasks(recipe, method, assembly.pieces, [planned.name for planned in inputs])
    return Plan(
        method=method.name,
        method_version=method.version,
        parameters=dataclasses.asdict(recipe.method.parameters),
        base=planned_base,
        sources=tuple(planned_sources),
        shards=tuple(
            Shard(name, tuple(tasks)) for name, tasks in assign_shards(tasks, shard_bytes).items()
        ),
        companions=companions,
        config=changed(views.config, assembly.config),
        vocabulary=vocabulary,
        compute=compute,
        seed=recipe.seed,
        recipe=recipe.weights_dict(),
        warnings=tuple(warnings),
    )


def _read_inputs(
    recipe: Recipe, base: Source | None, sources: Mapping[str, Source]
) -> tuple[PlannedInput | None, list[PlannedInput], dict[str, dict[str, StoredTensor]]]:
    headers: dict[str, dict[str, StoredTensor]] = {}
    planned = []
    for source in [base, *(sources[name] for name in recipe.sources)]:
        if source is None:
            continue
        with about(key_of(source.name)):
            described, headers[source.name] = read_input(source)
        planned.append(described)
    if base is None:
        return None, planned, headers
    return planned[0], planned[1:], headers


def _tokenizer_input(recipe: Recipe, inputs: Sequence[PlannedInput]) -> PlannedInput:
    """The input that the recipe takes the tokenizer from; ``base`` without a base is the first."""
    for planned in inputs:
        if planned.name == recipe.tokenizer.source:
            return planned
    return inputs[0]


def _stored_in_64_bits(pieces: Sequence[Piece]) -> str:
    """A tensor, as ``TENSOR of INPUT``, that float32 would take digits from; empty without one."""
    for piece in pieces:
        for one in (*([piece.base] if piece.base else []), *piece.sources):
            if one.stored.dtype == "F64":
                return f"{one.stored.name} of {one.source}"
    return ""


def _tasks(
    recipe: Recipe, method: methods.Method, pieces: Sequence[Piece], inputs: Sequence[str]
) -> list[TensorTask]:
    parameters = resolve_parameters(recipe, method, pieces)

    def part(ingredient: Ingredient) -> Part:
        return Part(inputs.index(ingredient.source), ingredient.stored.name)

    tasks = []
    for piece in pieces:
        is_real = piece.like.dtype in FLOATS
        saved = piece.like.dtype
        if is_real and recipe.dtype.save != "auto":
            saved = BY_WORD[recipe.dtype.save]
        is_merged = is_real and not piece.is_taken
        found = parameters[piece.name]
        task = TensorTask(
            name=piece.name,
            shape=piece.like.shape,
            dtype=saved,
            kind="merge" if is_merged else "take" if is_real else "copy",
            shared=found.shared if is_merged else {},
            per_source=found.per_source if is_merged else {},
            base=part(piece.base) if piece.base else None,
            sources=tuple(part(source) for source in piece.sources),
        )
        plain = [i for i, name in enumerate(inputs) if name != BASE or piece.base]
        own = [Part(i, piece.name) for i in plain]
        if own == [*([task.base] if task.base else []), *task.sources]:
            task = dataclasses.replace(task, base=None, sources=())
        tasks.append(task)
    return tasks
