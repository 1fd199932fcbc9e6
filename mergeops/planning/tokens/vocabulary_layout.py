"""Which tokens the merge has and where each embedding row comes from, before any weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.architectures import with_token_rows
from mergeops.checkpoint import (
    VOCABULARY_FILES,
    StoredTensor,
    TokenizerFile,
    read_small,
    tokenizer_directory,
)
from mergeops.errors import MergeError
from mergeops.planning.inputs import PlannedInput, config_of, has_config
from mergeops.planning.tokens.merged import NewToken, merge_vocabularies
from mergeops.planning.tokens.rows import InputTokens, Rows, lay_out
from mergeops.planning.tokens.vocabulary import (
    Vocabulary,
    embedding_tensors,
    has_vocabulary,
    read_vocabulary,
)
from mergeops.recipe import TokenizerSpec

Headers = Mapping[str, Mapping[str, StoredTensor]]


@dataclass(frozen=True, kw_only=True)
class VocabularyLayout:
    """The vocabulary of the result, where it is not simply that of every input."""

    rows: int
    """Rows of the result's embeddings."""
    runs: Mapping[str, tuple[int, ...]]
    """Input -> where its rows come from, see ``rows.Rows``; inputs that fit already are left
    out."""
    means: tuple[tuple[int, ...], ...]
    """Rows that are averaged, see ``rows.Rows``."""
    columns: Mapping[str, Mapping[str, int]]
    """Input -> tensors with a row for each token -> elements in a row."""
    added: tuple[NewToken, ...]
    """Tokens that the tokenizer's files get."""
    old_rows: int
    """Rows of the input whose config.json the result has."""

    def identity(self, inputs: Sequence[str]) -> list[Any]:
        """What decides merged bytes: for each input its rows and the tensors that have them."""
        laid_out = [[self.runs.get(name), sorted(self.columns[name])] for name in inputs]
        return [self.rows, self.means, laid_out]


@dataclass(frozen=True)
class _Input:
    """What is known of one input before rows are matched."""

    planned: PlannedInput
    rows: int
    columns: Mapping[str, int]
    """Tensors with a row for each token -> elements in a row."""
    others: Sequence[str]
    """Tensors with another number of rows for tokens."""
    directory: Path | None
    """Where its tokenizer is."""


def lay_out_vocabulary(
    spec: TokenizerSpec, inputs: Sequence[PlannedInput], headers: Headers, *, has_base: bool
) -> tuple[VocabularyLayout | None, list[str]]:
    """Match the rows of all inputs by token.

    Args:
        spec: ``source`` is base, union or an input's name.
        inputs: base, where there is one, then sources.
        headers: each input's tensors.
        has_base: whether the first input is the recipe's base.

    Returns:
        The layout, None where every input has it already, and warnings.

    Raises:
        SourceError: a tokenizer's file is no JSON.
        MergeError: a vocabulary cannot be read, or a token's row cannot be found.
    """
    changes = bool(spec.tokens or spec.pad_to_multiple_of)
    if len(inputs) == 1 and not changes:
        return None, []
    known = [_describe(planned, headers[planned.name]) for planned in inputs]
    named = [k.planned.name for k in known]
    preferred = named.index(spec.source) if spec.source in named else 0
    order = [preferred, *(i for i in range(len(known)) if i != preferred)]
    first = next((i for i in order if known[i].directory is not None), preferred)
    chosen = known[first]
    vocabularies, warnings = _vocabularies(known, chosen)
    own = vocabularies[chosen.planned.name]
    if own is None:
        if changes or spec.source == "union":
            raise _unreadable(chosen)
        return None, warnings
    numbered = [
        InputTokens(k.planned.name, (vocabularies[k.planned.name] or own).ids, k.rows)
        for k in known
    ]
    others = {name: v for name, v in vocabularies.items() if v is not None and v is not own}
    ids, added = merge_vocabularies(own, others, spec.tokens, union=spec.source == "union")
    rows = _rows(spec, ids, {token.content for token in added}, numbered, chosen.rows)
    laid_out = lay_out(
        ids, rows, numbered, first=first, base=0 if has_base else None, tokens=spec.tokens
    )
    if not laid_out.runs and not added:
        return None, warnings
    _check_heads(known)
    return (
        VocabularyLayout(
            rows=rows,
            runs=laid_out.runs,
            means=laid_out.means,
            columns={k.planned.name: k.columns for k in known},
            added=added,
            old_rows=next((k.rows for k in known if has_config(k.planned)), rows),
        ),
        [*warnings, *_tell(ids, rows, laid_out)],
    )


def resized(headers: Headers, layout: VocabularyLayout) -> dict[str, dict[str, StoredTensor]]:
    """The headers as they are when every input's rows are laid out."""
    return {
        name: {
            tensor: dataclasses.replace(stored, shape=with_token_rows(stored.shape, layout.rows))
            if tensor in layout.columns[name]
            else stored
            for tensor, stored in tensors.items()
        }
        for name, tensors in headers.items()
    }


def _check_heads(known: Sequence[_Input]) -> None:
    """A row that is another input's must be in the tensor of the same name there."""
    for k in known:
        if k.others:
            raise MergeError(
                f"{k.planned.name} has a vocabulary of {k.rows} rows, and its {k.others[0]} has "
                "another number of them: rows of two vocabularies cannot be matched by the tokens "
                "of one tokenizer; give both one size with transformers' resize_token_embeddings, "
                "and save the model"
            )
    one, *others = known
    for other in others:
        if one.columns.keys() != other.columns.keys():
            name = min(one.columns.keys() ^ other.columns.keys())
            has, lacks = (one, other) if name in one.columns else (other, one)
            raise MergeError(
                f"{name} is in {has.planned.name} but not in {lacks.planned.name}, and their "
                "vocabularies differ: rows of such heads cannot be matched by token; save both "
                "models with the same tie_word_embeddings first"
            )


def _describe(planned: PlannedInput, tensors: Mapping[str, StoredTensor]) -> _Input:
    rows, names, others = embedding_tensors(planned.name, tensors, config_of(planned))
    columns = {name: tensors[name].numel // rows for name in names}
    return _Input(planned, rows, columns, others, tokenizer_directory(planned.directories))


def _vocabularies(
    known: Sequence[_Input], chosen: _Input
) -> tuple[dict[str, Vocabulary | None], list[str]]:
    """Input -> its tokens; None where they are the chosen input's.

    The chosen input's own are None if they cannot be read and nobody needs them.
    """
    warnings = []
    vocabularies: dict[str, Vocabulary | None] = {}
    readable = chosen.directory is not None and has_vocabulary(chosen.directory)
    for k in known:
        name = k.planned.name
        vocabularies[name] = None
        if k.directory is None:
            if k.rows != chosen.rows:
                raise MergeError(
                    f"{name} has no tokenizer, and {k.rows} rows of embeddings where "
                    f"{chosen.planned.name} has {chosen.rows}: which row is which token's cannot "
                    "be known; put its tokenizer.json beside the weights"
                )
            if chosen.directory is not None:
                warnings.append(
                    f"{name} has no tokenizer; its rows are taken for those of "
                    f"{chosen.planned.name}'s tokens"
                )
        elif k is not chosen and _same_files(k, chosen):
            if not readable and k.rows != chosen.rows:
                raise _unreadable(k)
        elif readable or k is not chosen:
            if not readable or not has_vocabulary(k.directory):
                raise _unreadable(chosen if not readable else k)
            vocabularies[name] = read_vocabulary(k.directory)
    return vocabularies, warnings


def _same_files(one: _Input, other: _Input) -> bool:
    """Whether two tokenizers' files are the same, byte by byte."""
    assert one.directory is not None
    if other.directory is None:
        return False
    compared = 0
    for name in (*VOCABULARY_FILES, TokenizerFile.ADDED_TOKENS):
        files = [directory / name for directory in (one.directory, other.directory)]
        present = [file.is_file() for file in files]
        if any(present) and (not all(present) or read_small(files[0]) != read_small(files[1])):
            return False
        compared += all(present)
    return compared > 0


def _unreadable(k: _Input) -> MergeError:
    name = k.planned.name
    if k.directory is None:
        return MergeError(f"{name} has no tokenizer, so rows cannot be matched by token")
    vocabulary = next(file for file in VOCABULARY_FILES if (k.directory / file).is_file())
    return MergeError(
        f"the tokenizer of {name} has {vocabulary} but no tokenizer.json, which rows are matched "
        "by; write one with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    )


def _rows(
    spec: TokenizerSpec,
    ids: Mapping[str, int],
    added: set[str],
    known: Sequence[InputTokens],
    rows: int,
) -> int:
    """How many rows the result has: never fewer than the input whose tokenizer it is."""
    beyond = [
        i
        for token, i in ids.items()
        if i >= rows
        and (
            token in added
            or token in spec.tokens
            or any(k.ids.get(token, k.rows) < k.rows for k in known)
        )
    ]
    rows = max([rows, *(i + 1 for i in beyond)])
    multiple = spec.pad_to_multiple_of or 1
    return -(-rows // multiple) * multiple


def _tell(ids: Mapping[str, int], rows: int, laid_out: Rows) -> list[str]:
    """What the user should know about rows that are not simply an input's own."""
    told = [
        f"{n} token(s) of the merge are unknown to {name}, which takes their embeddings from others"
        for name, n in laid_out.borrowed.items()
        if n
    ]
    if laid_out.empty:
        told.append(f"{laid_out.empty} token(s) of the merge have an embedding of zeros")
    beyond = sum(i >= rows for i in ids.values())
    if beyond:
        told.append(f"{beyond} token(s) of the tokenizer have no row in the embeddings")
    return told
