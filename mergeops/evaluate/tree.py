"""Lay out token sequences so that what they have in common is computed once.

Two ways, which go together. A *row* is a tree of tokens laid out flat: a token attends to itself
and to what is before it in its own sequences, and its position is its depth, so a causal model
computes for it what it would compute in a row of its own. A *group* is rows behind one long
beginning whose keys and values are computed once and kept. The choices of an item are one row; the
items of a few-shot task with fixed examples are one group.

Cai et al. 2024, https://arxiv.org/abs/2401.10774, section 3.2, verify drafts with the same mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt

ROW_TOKENS = 4096
"""Rows are no longer than this, unless one sequence alone is."""
_MASK_ELEMENTS = 2**26
"""Of all rows of a batch together; 256 MB in float32."""
_LEAST_PREFIX = 64
"""A shorter common beginning is not worth a forward pass of its own."""

Ids = npt.NDArray[np.int64]


@dataclass
class TokenRow:
    """Sequences laid out as one row of tokens, behind ``start`` tokens that are not in it."""

    start: int = 0
    tokens: list[int] = field(default_factory=list)
    """``[t]`` token ids."""
    depths: list[int] = field(default_factory=list)
    """``[t]`` position of each token in its own sequences."""
    members: list[int] = field(default_factory=list)
    """Which of the packed sequences are here."""
    paths: list[Ids] = field(default_factory=list)
    """For each member ``[len(sequence) - start]``, where in the row its tokens are."""
    shared: list[int] = field(default_factory=list)
    """For each member, how many tokens of its path were there before it came."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether every token follows the one before it, as plain causal attention takes it."""
        return len(self.tokens) == self.depths[-1] + 1

    def add(self, member: int, tokens: Sequence[int], shared: int) -> None:
        """Put in a sequence that has ``shared`` tokens in common with the one put in last.

        Args:
            member: its number.
            tokens: what of it comes behind ``start``.
            shared: 0 in an empty row.
        """
        end, fresh = len(self.tokens), len(tokens) - shared
        shared_path = self.paths[-1][:shared] if shared else np.empty(0, np.int64)
        self.paths.append(np.concatenate([shared_path, np.arange(end, end + fresh)]))
        self.tokens.extend(tokens[shared:])
        self.depths.extend(range(self.start + shared, self.start + len(tokens)))
        self.members.append(member)
        self.shared.append(shared)

    def attends(self) -> npt.NDArray[np.bool_]:
        """``[t, start + t]``: which token (column) each token of the row sees."""
        sees = np.zeros((len(self), self.start + len(self)), bool)
        sees[:, : self.start] = True
        own = sees[:, self.start :]
        for path, shared in zip(self.paths, self.shared, strict=True):
            if shared < len(path):
                first, last = int(path[shared]), int(path[-1]) + 1
                own[first:last, path[:shared]] = True
                own[first:last, first:last] = np.tri(last - first, dtype=bool)
        return sees


@dataclass(frozen=True)
class PrefixGroup:
    """Rows behind one beginning."""

    prefix: Sequence[int]
    """Token ids that every sequence here begins with; may be none."""
    rows: list[TokenRow]
    """Longest first."""


def pack(
    sequences: Sequence[list[int]],
    reads: Sequence[int],
    break_even: float,
    row_tokens: int = ROW_TOKENS,
) -> list[PrefixGroup]:
    """Lay out sequences at the least cost.

    Args:
        sequences: token ids, each at least one.
        reads: for each sequence, at how many of its last tokens the output is read, at least one;
            those stay out of prefixes.
        break_even: the row length r at which attention costs a token as much as all the rest of
            the model: a row of t tokens costs t (r + t), since each attends to all, in vain for
            most.
        row_tokens: most tokens in a row and the prefix before it, unless one sequence has more:
            some models have buffers as long as their longest input.
    """
    rows_of = partial(_rows, sequences, break_even=break_even, row_tokens=row_tokens)
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    common = _common_lengths(sequences, order)
    groups: list[PrefixGroup] = []
    without_prefix: list[int] = []
    begin = 0
    for end in range(1, len(order) + 1):
        if end < len(order) and common[end] >= _LEAST_PREFIX:
            continue
        # A run: sequences that all begin alike, in so many tokens that none of them is read.
        run = order[begin:end]
        length = min([*common[begin + 1 : end], *(len(sequences[i]) - reads[i] for i in run)])
        if len(run) > 1 and length >= _LEAST_PREFIX:
            # The pass over the prefix comes on top, and is as slow as one over more tokens.
            prefix_cost = (_LEAST_PREFIX + length) * (break_even + length)
            behind = rows_of(run, start=length)
            if prefix_cost + _cost(behind, break_even) < _cost(rows_of(run), break_even):
                groups.append(PrefixGroup(sequences[run[0]][:length], behind))
                run = []
        without_prefix += run
        begin = end
    if without_prefix:
        groups.append(PrefixGroup((), rows_of(without_prefix)))
    return groups


def batches(
    rows: Sequence[TokenRow], reads: Sequence[int], *, size: int, most_reads: int, most_tokens: int
) -> Iterator[list[TokenRow]]:
    """Rows in the given order, as many at a time as the limits allow, at least one.

    Args:
        rows: longest first.
        reads: for each packed sequence, at how many positions the output is read.
        size: most sequences in a batch.
        most_reads: in a batch.
        most_tokens: in a batch, padding included.
    """
    batch: list[TokenRow] = []
    members = batch_reads = 0
    for row in rows:
        row_reads = sum(reads[member] for member in row.members)
        width = len(batch[0]) if batch else len(row)
        tokens = (len(batch) + 1) * width
        if batch and (
            members + len(row.members) > size
            or batch_reads + row_reads > most_reads
            or tokens > most_tokens
            or tokens * (row.start + width) > _MASK_ELEMENTS
        ):
            yield batch
            batch, members, batch_reads = [], 0, 0
        batch.append(row)
        members += len(row.members)
        batch_reads += row_reads
    if batch:
        yield batch


def _rows(
    sequences: Sequence[list[int]],
    order: Sequence[int],
    *,
    break_even: float,
    row_tokens: int,
    start: int = 0,
) -> list[TokenRow]:
    """Put each sequence, less ``start`` tokens, where it costs least: behind the one it begins
    alike, or in a new row."""
    rows: list[TokenRow] = []
    for i, common in zip(order, _common_lengths(sequences, order), strict=True):
        tokens, shared = sequences[i][start:], common - start
        if rows and shared > 0:
            fresh, row = len(tokens) - shared, len(rows[-1])
            # Cost t (r + t) of a row of its own, and by how much the cost of the last row grows.
            alone = len(tokens) * (break_even + len(tokens))
            joined = fresh * (break_even + fresh + 2 * row)
            # With p shared tokens, a sequence costs least in rows of p + sqrt(p (r + p)) tokens.
            best = min(shared + math.sqrt(shared * (break_even + shared)), row_tokens - start)
            if joined <= alone and row + fresh <= max(best, len(tokens)):
                rows[-1].add(i, tokens, shared)
                continue
        rows.append(TokenRow(start))
        rows[-1].add(i, tokens, 0)
    rows.sort(key=len, reverse=True)
    return rows


def _common_lengths(sequences: Sequence[list[int]], order: Sequence[int]) -> list[int]:
    """How many first tokens each has in common with the one before it."""
    lengths = [_common_length(sequences[a], sequences[b]) for a, b in pairwise(order)]
    return [0, *lengths] if order else []


def _cost(rows: Sequence[TokenRow], break_even: float) -> float:
    """Sum of t (r + start + t) over rows of t tokens: each attends to all, and to the prefix."""
    return sum(len(row) * (break_even + row.start + len(row)) for row in rows)


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning, by bisection."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
