"""Packing: every token once where it can be, and each sees what it would see alone."""

from __future__ import annotations

import random

import pytest

from mergeops.evaluate.tree import PrefixGroup, TokenRow, batches, pack

BREAK_EVEN = 1000.0


def rows_of(groups: list[PrefixGroup]) -> list[TokenRow]:
    return [row for group in groups for row in group.rows]


def seen_by(group: PrefixGroup, row: TokenRow, member: int) -> list[list[int]]:
    """The tokens that each token of a member attends to, in order of their depth."""
    tokens, depths = [*group.prefix, *row.tokens], [*range(row.start), *row.depths]
    path = row.paths[row.members.index(member)]
    seen = []
    for sees in row.attends()[path]:
        columns = sorted(sees.nonzero()[0], key=lambda c: depths[c])
        assert [depths[c] for c in columns] == list(range(len(columns)))
        seen.append([tokens[c] for c in columns])
    return seen


def test_choices_of_an_item_share_the_item() -> None:
    item = list(range(10, 40))
    [group] = pack([[*item, 1, 2], [*item, 1, 3], [*item, 4]], [2, 2, 1], BREAK_EVEN)
    [row] = group.rows
    # 30 of the item, 1 2, 3, 4: what two choices begin with is there once as well
    assert (group.prefix, len(row)) == ((), 34)
    assert row.depths == [*range(32), 31, 30]


def test_equal_sequences_take_no_room() -> None:
    [group] = pack([[1, 2, 3], [1, 2, 3], [1, 2]], [1, 1, 1], BREAK_EVEN)
    [row] = group.rows
    assert row.tokens == [1, 2, 3]
    assert row.is_chain
    assert sorted(len(path) for path in row.paths) == [2, 3, 3]


def test_strangers_have_rows_of_their_own() -> None:
    rows = rows_of(pack([[1, 2, 3], [4, 5]], [1, 1], BREAK_EVEN))
    assert [row.tokens for row in rows] == [[1, 2, 3], [4, 5]]
    assert all(row.is_chain for row in rows)


def test_items_behind_the_same_examples_share_their_keys_and_values() -> None:
    examples = list(range(100, 300))
    items = [[*examples, *[i] * 50, choice] for i in range(10) for choice in (97, 98)]
    [group] = pack(items, [2] * 20, BREAK_EVEN)
    assert list(group.prefix) == examples
    assert [len(row) for row in group.rows] == [52] * 10
    assert {row.start for row in group.rows} == {200}


def test_where_output_is_read_is_never_kept_as_a_prefix() -> None:
    common = list(range(200))
    groups = pack([[*common, *[i] * 60] for i in range(300, 310)], [130] * 10, BREAK_EVEN)
    assert all(len(group.prefix) <= 260 - 130 for group in groups)


def test_short_beginnings_are_not_worth_a_pass_of_their_own() -> None:
    greeting = list(range(20))
    groups = pack([[*greeting, *[i] * 400] for i in range(300, 310)], [1] * 10, BREAK_EVEN)
    assert [len(group.prefix) for group in groups] == [0]


@pytest.mark.parametrize("seed", range(5))
def test_every_token_sees_its_own_sequence_and_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    heads = [[rng.randrange(5) for _ in range(n)] for n in (0, 3, 90, 150)]
    sequences, reads = [], []
    for _ in range(40):
        tail = [rng.randrange(5) for _ in range(rng.randrange(1, 30))]
        sequences.append([*rng.choice(heads), *tail])
        reads.append(rng.randrange(1, len(tail) + 1))
    groups = pack(sequences, reads, BREAK_EVEN)
    found = []
    for group in groups:
        for row in group.rows:
            for member in row.members:
                found.append(member)
                sequence = sequences[member]
                assert list(group.prefix) == sequence[: row.start]
                assert len(sequence) - row.start >= reads[member]
                assert seen_by(group, row, member) == [
                    sequence[: i + 1] for i in range(row.start, len(sequence))
                ]
    assert sorted(found) == list(range(40))


def test_no_row_is_longer_than_allowed_unless_one_sequence_is() -> None:
    item = list(range(10, 40))
    sequences = [[*item, *[i] * 10] for i in range(100, 104)] + [[7] * 90]
    rows = rows_of(pack(sequences, [1] * 5, BREAK_EVEN, row_tokens=60))
    # 40 for the first and 10 for each that joins it: three fill a row of 60
    assert [len(row) for row in rows] == [90, 60, 40]
    assert [len(row.members) for row in rows] == [1, 3, 1]


def test_batches_keep_every_limit_but_hold_one_row_at_least() -> None:
    sequences = [[i] * n for i, n in enumerate((50, 30, 30, 20, 20, 20))]
    rows = rows_of(pack(sequences, [1] * 6, BREAK_EVEN))

    def sizes(size: int = 99, most_reads: int = 99, most_tokens: int = 999) -> list[list[int]]:
        limits = {"size": size, "most_reads": most_reads, "most_tokens": most_tokens}
        return [[len(row) for row in b] for b in batches(rows, [1] * 6, **limits)]

    assert sizes() == [[50, 30, 30, 20, 20, 20]]
    assert sizes(size=4) == sizes(most_reads=4) == [[50, 30, 30, 20], [20, 20]]
    # padded to the longest: 50 alone, then two of 30, then three of 20
    assert sizes(most_tokens=60) == [[50], [30, 30], [20, 20, 20]]
    assert sizes(most_tokens=1) == [[50], [30], [30], [20], [20], [20]]
