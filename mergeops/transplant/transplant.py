"""A model with the vocabulary of another: its weights, the donor's tokenizer, new rows.

It is made by a plan, as merges are: streamed, resumable, and named by its digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergeops.architectures import read_fit
from mergeops.checkpoint import (
    FLOATS,
    StoredTensor,
    TensorReader,
    read_range,
    tokenizer_directory,
)
from mergeops.engine import assemble, default_card, made_input, open_input
from mergeops.errors import ConfigError, MergeError
from mergeops.lazy_torch import Tensor
from mergeops.planning import (
    Plan,
    PlannedInput,
    TensorPart,
    TensorTask,
    config_of,
    embedding_tensors,
    read_inputs,
)
from mergeops.progress import Progress
from mergeops.sources import Source
from mergeops.transplant.new_rows import (
    METHODS,
    Match,
    by_pieces,
    by_sums,
    laid_out,
    pieces_of,
    sums_of,
)
from mergeops.transplant.shared_tokens import Tokens, by_role, matched

FORMAT = 2
"""Raised when the same two models give other rows."""


@dataclass(frozen=True)
class Transplant:
    """A model with another vocabulary."""

    checkpoint: Path
    shared: int
    """Tokens whose rows are the model's own."""
    new: int
    """Tokens whose rows were made."""
    rows: int
    plan: Plan = dataclasses.field(repr=False)
    was_there: bool

    def measures(self) -> dict[str, float]:
        """What the run of a trial has as metrics."""
        return {
            "transplant/shared": float(self.shared),
            "transplant/new": float(self.new),
            "transplant/rows": float(self.rows),
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "checkpoint": str(self.checkpoint),
            "shared": self.shared,
            "new": self.new,
            "rows": self.rows,
            "plan_digest": self.plan.digest,
            "was_there": self.was_there,
            "warnings": list(self.plan.warnings),
        }


@dataclass(frozen=True)
class _Side:
    """One of the two models."""

    planned: PlannedInput
    tensors: Mapping[str, StoredTensor]
    config: dict[str, Any]
    tokens: Tokens
    place: Path
    """Of its tokenizer."""
    rows: int
    tables: tuple[str, ...]
    """Tensors with a row for each token: embeddings, and the head where it is one of its own."""

    @classmethod
    def read(cls, source: Source) -> _Side:
        [planned], headers, _ = read_inputs([source])
        tensors = headers[planned.name]
        config = config_of(planned)
        if not config:
            raise MergeError(f"{source.uri} has no config.json")
        # A directory without a tokenizer is refused by its name.
        place = tokenizer_directory(planned.directories) or planned.directories[0]
        rows, tables, others = embedding_tensors(source.uri, tensors, config)
        if others:
            raise MergeError(
                f"{source.uri} has a vocabulary of {rows} rows, and its {others[0]} has another "
                "number of them; give both one size with transformers' resize_token_embeddings"
            )
        fit = read_fit(config, {name: stored.shape for name, stored in tensors.items()})
        copies = {} if fit is None else fit.tied_on_disk()
        # A copy of the embeddings, which a tied head may be on disk, is left out.
        tables = [name for name in tables if name not in copies]
        tensors = {name: stored for name, stored in tensors.items() if name not in copies}
        shapes = [tensors[name].shape for name in tables]
        if len(tables) > 2 or any(len(shape) != 2 or shape[0] != rows for shape in shapes):
            raise MergeError(
                f"{source.uri} has {', '.join(tables)} with a row for each token; embeddings and "
                "one head without a bias are taken"
            )
        tokens = Tokens.read(place)
        return cls(planned, tensors, config, tokens, place, rows, tuple(tables))


def make_transplant(
    model: Source,
    donor: Source,
    out: Path,
    *,
    method: str = "omp",
    k: int = 16,
    cache_dir: Path,
    device: str = "auto",
    progress: Progress,
) -> Transplant:
    """Write the model with the donor's vocabulary.

    Args:
        model: gives the weights.
        donor: gives the tokenizer, and says how its tokens lie among each other.
        out: a new directory, or one that holds this very model.
        method: one of ``METHODS``, for tokens that the model lacks.
        k: shared tokens that a new one is a sum of, of ``omp``.
        cache_dir: where the rows are kept.
        device: of the copying.
        progress: where steps are shown.

    Raises:
        ConfigError: a method or number is out of range.
        SourceError: a file is missing, corrupt or of an unsupported kind.
        MergeError: the vocabularies share too little, or have no place in the model; or ``out``
            holds something else.
    """
    if method not in METHODS:
        raise ConfigError(f"--method is {method!r}; allowed: {', '.join(METHODS)}")
    ours, theirs = _Side.read(model), _Side.read(donor)
    if "vocab_size" not in ours.config:
        raise MergeError(
            f"the config.json of {model.uri} has no vocab_size at its top: models whose text is a "
            "part are not taken"
        )
    match = _match(ours, theirs)
    match.check(k, method)
    files = [side.tokens.vocabulary.file.read_bytes() for side in (ours, theirs)]
    content = [FORMAT, ours.planned.sha256, theirs.planned.sha256, method]
    content += [k if method == "omp" else 0, *(hashlib.sha256(f).hexdigest() for f in files)]
    rows = made_input(
        "rows",
        f"rows:{method}",
        cache_dir,
        content,
        lambda: _rows(ours, theirs, match, method, k, progress),
    )
    inputs = (ours.planned, theirs.planned)
    plan, was_there = assemble(
        _tasks(ours, match.rows),
        inputs,
        rows,
        small_files=inputs,
        home=theirs.planned,
        settings={"vocab_size": match.rows},
        recipe={"transplant": {"model": model.uri, "donor": donor.uri, "method": method, "k": k}},
        notes=(),
        label=model.uri,
        card=lambda plan: default_card(dataclasses.replace(plan, sources=inputs)),
        out=out,
        cache_dir=cache_dir,
        device=device,
        progress=progress,
    )
    return Transplant(out, len(match.ours), len(match.new), match.rows, plan, was_there)


def _match(ours: _Side, theirs: _Side) -> Match:
    first, second = matched(ours.tokens, theirs.tokens)
    roles = by_role(ours.place, ours.tokens, theirs.place, theirs.tokens, second)
    pairs = [*zip(first.tolist(), second.tolist(), strict=True), *roles]
    # Rows that a table lacks have no number to copy.
    pairs = sorted((b, a) for a, b in pairs if a < ours.rows and b < theirs.rows)
    both = np.array(pairs, np.int64).reshape(-1, 2)
    has_row = np.array(list(theirs.tokens.vocabulary.ids.values()), np.int64)
    if (has_row >= theirs.rows).any():
        raise MergeError(
            f"the tokenizer of {theirs.planned.uri} has {theirs.tokens.count} ids and its "
            f"embeddings {theirs.rows} rows; take a donor with a row for each token"
        )
    new = np.setdiff1d(has_row, both[:, 0])
    return Match(both[:, 1].copy(), both[:, 0].copy(), new, max(theirs.rows, theirs.tokens.count))


def _rows(
    ours: _Side, theirs: _Side, match: Match, method: str, k: int, progress: Progress
) -> dict[str, Tensor]:
    """The model's tables for the donor's tokens."""
    tables: dict[str, Tensor] = {}
    model, donor = open_input(ours.planned, "F32"), open_input(theirs.planned, "F32")
    try:
        pieces = pieces_of(ours.tokens, theirs.tokens, match.new) if method == "mean" else []
        for number, name in enumerate(ours.tables):
            mine = _table(model, ours, name)
            if method == "mean":
                new = by_pieces(mine, match, pieces)
            else:
                # A donor whose head is its embeddings says of both how tokens lie.
                like = theirs.tables[min(number, len(theirs.tables) - 1)]
                with progress.bar(f"matching tokens of {name}") as tick:
                    sums = sums_of(_table(donor, theirs, like), match, k, tick)
                new = by_sums(mine, match, sums)
            tables[name] = laid_out(mine, match, new).contiguous()
    finally:
        model.close()
        donor.close()
    return tables


def _table(reader: TensorReader, side: _Side, name: str) -> Tensor:
    stored = side.tensors[name]
    values: Tensor = read_range(reader, stored.name, 0, stored.numel).float().view(stored.shape)
    if not bool(values.isfinite().all()):
        raise MergeError(f"{name} of {side.planned.uri} holds NaN or infinity")
    return values


def _tasks(ours: _Side, rows: int) -> list[TensorTask]:
    def task(stored: StoredTensor) -> TensorTask:
        is_table = stored.name in ours.tables
        return TensorTask(
            name=stored.name,
            shape=(rows, stored.shape[1]) if is_table else stored.shape,
            dtype=stored.dtype,
            kind="take" if stored.dtype in FLOATS else "copy",
            shared={},
            per_source={},
            sources=(TensorPart(2 if is_table else 0, stored.name),),
        )

    return [task(dataclasses.replace(s, name=name)) for name, s in ours.tensors.items()]
