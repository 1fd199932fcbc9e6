"""For each input: which row of which input each row of the result's embeddings is merged from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mergeops.errors import MergeError
from mergeops.recipe import TokenSource, TokenSpec

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
NOWHERE = -1
"""Origin of a row of zeros."""
AVERAGE = -2
"""Origin of a row that is the mean of all rows of other origins."""
FIRST_MEAN = -3
"""Origin of rows of the first entry of ``Rows.means``; the next one's is one less."""


@dataclass(frozen=True)
class Rows:
    """The rows of every input, laid out alike."""

    runs: Mapping[str, tuple[int, ...]]
    """Input -> flat triples (origin, first row there, how many): an input's number, ``NOWHERE``,
    ``AVERAGE`` or a mean. Inputs that are as the result already are left out."""
    means: tuple[tuple[int, ...], ...]
    """Flat pairs (input's number, first row there), to be averaged."""
    borrowed: Mapping[str, int]
    """Input -> how many of its tokens' rows are another's."""
    empty: int
    """Tokens that no input has a row for."""


@dataclass(frozen=True)
class InputTokens:
    """What is known of one input's tokens."""

    name: str
    ids: Mapping[str, int]
    rows: int
    """Rows of its embeddings; ids beyond have none."""

    def padding(self, rows: int) -> npt.NDArray[np.bool_]:
        """``[rows]``: which rows it has are no token's."""
        is_padding = np.arange(rows) < self.rows
        ids = np.fromiter(self.ids.values(), np.int64, len(self.ids))
        is_padding[ids[ids < rows]] = False
        return is_padding


def lay_out(
    ids: Mapping[str, int],
    rows: int,
    inputs: Sequence[InputTokens],
    *,
    first: int,
    base: int | None,
    tokens: Mapping[str, TokenSpec],
) -> Rows:
    """Find every row by its token.

    A token that an input lacks has the base's row there, else that of the only input that has one,
    else the mean of those that have one. Rows that are no token's are padding: an input that has a
    token there, or nothing, takes the row of the input whose tokenizer it is; beyond that one's
    rows each is the mean of all others (Hewitt 2021,
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html), which no output head prefers.

    Args:
        ids: token -> row of the result.
        rows: rows of the result, more than any id that counts.
        inputs: in the order that numbers them.
        first: the input whose tokenizer it is.
        base: the base among them.
        tokens: what the recipe says of single tokens.

    Raises:
        MergeError: the recipe names a row that does not exist, or a token that no input knows.
    """
    own = np.full((len(inputs), rows), -1, dtype=np.int64)
    counted = [(token, i) for token, i in ids.items() if i < rows]
    places = np.fromiter((i for _, i in counted), np.int64, len(counted))
    for number, known in enumerate(inputs):
        find = known.ids.get
        theirs = np.fromiter((find(token, -1) for token, _ in counted), np.int64, len(counted))
        theirs[theirs >= known.rows] = -1
        own[number, places] = theirs
    is_token = np.zeros(rows, dtype=bool)
    is_token[places] = True
    forced = [ids[token] for token, wanted in tokens.items() if wanted.force]
    # A token that every input has is averaged nowhere, unless the recipe says so.
    is_wanted: Mask = np.asarray((own < 0).any(axis=0), dtype=np.bool_)
    is_wanted[forced] = True
    origin, row, means = _fill(own, is_token, is_wanted, inputs[first].rows, first, base)
    for token, wanted in tokens.items():
        place = ids[token]
        if wanted.source is not None:
            origin[place], row[place] = _chosen(token, wanted.source, inputs)
        elif not (own[:, place] >= 0).any():
            raise MergeError(
                f"no input has an embedding for {token!r}; say which row it gets with "
                f"tokenizer.tokens.{token}.source"
            )
    own[:, forced] = -1
    is_padding = ~is_token & (np.arange(rows) < inputs[first].rows)
    for number, known in enumerate(inputs):
        own[number] = np.where(is_padding & known.padding(rows), np.arange(rows), own[number])
    empty = int((is_token & (origin == NOWHERE) & (own < 0).all(axis=0)).sum())
    runs, borrowed = {}, {}
    for number, known in enumerate(inputs):
        is_own = own[number] >= 0
        triples = _runs(np.where(is_own, number, origin), np.where(is_own, own[number], row))
        if triples != (number, 0, known.rows):
            runs[known.name] = triples
            borrowed[known.name] = int((is_token & ~is_own).sum())
    return Rows(runs, means, borrowed, empty)


def _fill(
    own: Ints, is_token: Mask, is_wanted: Mask, padding: int, first: int, base: int | None
) -> tuple[Ints, Ints, tuple[tuple[int, ...], ...]]:
    """Origin and row for inputs that lack a token, and for rows that are no token's."""
    n, rows = own.shape
    origin = np.full(rows, NOWHERE, dtype=np.int64)
    row = np.arange(rows, dtype=np.int64)
    origin[:padding][~is_token[:padding]] = first
    origin[padding:][~is_token[padding:]] = AVERAGE
    has = own >= 0
    count = has.sum(axis=0)
    only = count == 1
    origin[only] = has.argmax(axis=0)[only]
    if base is not None:
        origin[has[base]] = base
    picked = is_token & (origin >= 0)
    row[picked] = own[origin[picked], np.flatnonzero(picked)]
    several = np.flatnonzero((count > 1) & (origin == NOWHERE) & is_wanted)
    # Tokens next to each other for everybody are averaged together.
    steps = np.where(has[:, several], own[:, several] - several, -rows - 1)
    breaks = (np.diff(steps, axis=1) != 0).any(axis=0) | (np.diff(several) != 1)
    starts = np.flatnonzero(np.r_[np.ones(min(several.size, 1), dtype=bool), breaks])
    ends = [*starts, several.size][1:]
    means = []
    for k, (begin, end) in enumerate(zip(starts, ends, strict=True)):
        place = several[begin]
        means.append(tuple(int(v) for j in range(n) if has[j, place] for v in (j, own[j, place])))
        origin[several[begin:end]] = FIRST_MEAN - k
        row[several[begin:end]] = np.arange(end - begin)
    return origin, row, tuple(means)


def _chosen(
    token: str, source: TokenSource | str, inputs: Sequence[InputTokens]
) -> tuple[int, int]:
    if source == "zero":
        return NOWHERE, 0
    if isinstance(source, str):
        source = TokenSource(source)
    number = [known.name for known in inputs].index(source.source)
    known = inputs[number]
    where = f"tokenizer.tokens.{token}.source"
    if source.token_id is not None:
        place = source.token_id
    else:
        wanted = token if source.token is None else source.token
        if wanted not in known.ids:
            raise MergeError(f"{where}: {known.name} has no token {wanted!r}")
        place = known.ids[wanted]
    if place >= known.rows:
        raise MergeError(
            f"{where}: {known.name} has {known.rows} rows of embeddings, none for id {place}"
        )
    return number, place


def _runs(origin: Ints, row: Ints) -> tuple[int, ...]:
    """Run-length encode: a run goes on while the origin stays and the row grows by one."""
    starts = np.flatnonzero(np.r_[True, (np.diff(origin) != 0) | (np.diff(row) != 1)])
    lengths = np.diff(np.r_[starts, origin.size])
    flat = np.stack([origin[starts], row[starts], lengths], axis=1).ravel()
    return tuple(flat.tolist())
