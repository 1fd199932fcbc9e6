"""Where each row of each input's embeddings comes from, on vocabularies small enough to read."""

from __future__ import annotations

import time

import numpy as np
import pytest

from mergeops.checkpoint.relaid import RowTable
from mergeops.errors import MergeError
from mergeops.planning.tokens.rows import AVERAGE, FIRST_MEAN, NOWHERE, InputTokens, Rows, lay_out
from mergeops.recipe.tokenizer import TokenSource, TokenSpec

BASE = InputTokens("base", {"x": 0, "y": 1, "z": 2}, 3)


def table(found: Rows, name: str) -> list[tuple[int, int]]:
    read = RowTable(found.runs[name], found.means)
    return list(zip(read.origin.tolist(), read.row.tolist(), strict=True))


def test_inputs_that_agree_need_nothing() -> None:
    same = InputTokens("a", dict(BASE.ids), 3)
    found = lay_out(BASE.ids, 3, [BASE, same], first=0, base=0, tokens={})
    assert found == Rows({}, (), {}, 0)


def test_a_permuted_vocabulary_is_put_in_order() -> None:
    permuted = InputTokens("a", {"z": 0, "x": 1, "y": 2}, 3)
    found = lay_out(BASE.ids, 3, [BASE, permuted], first=0, base=0, tokens={})
    assert found.runs == {"a": (1, 1, 2, 1, 0, 1)}
    assert table(found, "a") == [(1, 1), (1, 2), (1, 0)]


def test_a_missing_token_has_the_bases_row() -> None:
    smaller = InputTokens("a", {"x": 0, "z": 1}, 2)
    found = lay_out(BASE.ids, 3, [BASE, smaller], first=0, base=0, tokens={})
    assert table(found, "a") == [(1, 0), (0, 1), (1, 1)]
    assert found.borrowed == {"a": 1}


def test_a_token_of_one_input_only_has_its_row_everywhere() -> None:
    more = InputTokens("a", {**BASE.ids, "new": 3}, 4)
    found = lay_out(more.ids, 4, [BASE, more], first=0, base=0, tokens={})
    assert "a" not in found.runs
    assert table(found, "base") == [(0, 0), (0, 1), (0, 2), (1, 3)]


def test_a_token_of_several_inputs_but_not_the_base_has_their_mean() -> None:
    one = InputTokens("a", {**BASE.ids, "p": 3, "q": 4}, 5)
    other = InputTokens("b", {**BASE.ids, "r": 3, "p": 4, "q": 5}, 6)
    ids = {**BASE.ids, "p": 3, "q": 4, "r": 5}
    found = lay_out(ids, 6, [BASE, one, other], first=0, base=0, tokens={})
    assert found.means == ((1, 3, 2, 4),)
    assert table(found, "base")[3:] == [(FIRST_MEAN, 0), (FIRST_MEAN, 1), (2, 3)]
    assert table(found, "a")[3:] == [(1, 3), (1, 4), (2, 3)]
    assert table(found, "b")[3:] == [(2, 4), (2, 5), (2, 3)]


def test_means_of_tokens_that_are_not_neighbours_everywhere_are_apart() -> None:
    one = InputTokens("a", {"p": 0, "q": 1}, 2)
    other = InputTokens("b", {"q": 0, "p": 1}, 2)
    lacks = InputTokens("c", {"x": 0}, 1)
    ids = {"p": 0, "q": 1, "x": 2}
    found = lay_out(ids, 3, [one, other, lacks], first=0, base=None, tokens={})
    assert found.means == ((0, 0, 1, 1), (0, 1, 1, 0))
    assert table(found, "c") == [(FIRST_MEAN, 0), (FIRST_MEAN - 1, 0), (2, 0)]


def test_padding_is_that_of_the_input_whose_tokenizer_it_is() -> None:
    padded = InputTokens("base", BASE.ids, 5)
    smaller = InputTokens("a", {"x": 0, "y": 1, "z": 2}, 4)
    found = lay_out(BASE.ids, 8, [padded, smaller], first=0, base=0, tokens={})
    average = [(AVERAGE, 5), (AVERAGE, 6), (AVERAGE, 7)]
    assert table(found, "base") == [(0, i) for i in range(5)] + average
    # Row 3 is padding of both, row 4 of the base only.
    assert table(found, "a") == [(1, i) for i in range(4)] + [(0, 4)] + average


def test_padding_never_is_another_inputs_token() -> None:
    padded = InputTokens("base", BASE.ids, 4)
    more = InputTokens("a", {**BASE.ids, "new": 3}, 4)
    found = lay_out(BASE.ids, 4, [padded, more], first=0, base=0, tokens={})
    assert table(found, "a")[3] == (0, 3)


def test_an_id_beyond_the_rows_is_no_row() -> None:
    cut = InputTokens("a", BASE.ids, 2)
    found = lay_out(BASE.ids, 3, [BASE, cut], first=0, base=0, tokens={})
    assert table(found, "a")[2] == (0, 2)


def test_a_chosen_source_counts_where_the_token_is_missing() -> None:
    one = InputTokens("a", {**BASE.ids, "new": 3}, 4)
    found = lay_out(
        {**BASE.ids, "new": 3},
        4,
        [BASE, one],
        first=0,
        base=0,
        tokens={"new": TokenSpec(TokenSource("base", token="y"))},
    )
    assert table(found, "base")[3] == (0, 1)
    assert "a" not in found.runs


def test_a_forced_source_counts_everywhere() -> None:
    one = InputTokens("a", {**BASE.ids, "new": 3}, 4)
    tokens = {
        "new": TokenSpec(TokenSource("base", token_id=2), force=True),
        "x": TokenSpec("a", force=True),
        "z": TokenSpec("zero", force=True),
    }
    found = lay_out({**BASE.ids, "new": 3}, 4, [BASE, one], first=0, base=0, tokens=tokens)
    assert table(found, "base") == [(1, 0), (0, 1), (NOWHERE, 0), (0, 2)]
    assert table(found, "a") == [(1, 0), (1, 1), (NOWHERE, 0), (0, 2)]


def test_force_alone_gives_all_the_bases_row() -> None:
    one = InputTokens("a", dict(BASE.ids), 3)
    found = lay_out(BASE.ids, 3, [BASE, one], first=0, base=0, tokens={"y": TokenSpec(force=True)})
    assert table(found, "a") == [(1, 0), (0, 1), (1, 2)]
    assert "base" not in found.runs


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (TokenSource("base", token="none"), r"tokens.new.source: base has no token 'none'"),
        (TokenSource("base", token_id=3), r"base has 3 rows of embeddings, none for id 3"),
        (None, r"no input has an embedding for 'new'; .* tokenizer.tokens.new.source"),
    ],
)
def test_a_row_that_does_not_exist_is_refused(source: TokenSource | None, match: str) -> None:
    with pytest.raises(MergeError, match=match):
        lay_out(
            {**BASE.ids, "new": 3},
            4,
            [BASE, BASE],
            first=0,
            base=0,
            tokens={"new": TokenSpec(source)},
        )


def test_every_row_of_a_random_vocabulary_is_found() -> None:
    generator = np.random.default_rng(0)
    names = [f"t{i}" for i in range(500)]
    inputs = []
    for name in ("a", "b", "c"):
        kept = generator.permutation(500)[:400]
        inputs.append(InputTokens(name, {names[t]: i for i, t in enumerate(kept)}, 400))
    ids = {token: i for i, token in enumerate(names)}
    found = lay_out(ids, 500, inputs, first=0, base=None, tokens={})
    for number, known in enumerate(inputs):
        rows = table(found, known.name)
        for token, i in ids.items():
            holders = [
                (n, other.ids[token]) for n, other in enumerate(inputs) if token in other.ids
            ]
            origin, row = rows[i]
            if token in known.ids:
                assert (origin, row) == (number, known.ids[token])
            elif len(holders) == 1:
                assert (origin, row) == holders[0]
            elif holders:
                flat = found.means[FIRST_MEAN - origin]
                pairs = list(zip(flat[::2], flat[1::2], strict=True))
                assert [(n, begin + row) for n, begin in pairs] == holders
            else:
                assert origin == NOWHERE


def test_a_permuted_vocabulary_of_128256_tokens_is_laid_out_in_well_under_a_second() -> None:
    order = np.random.default_rng(0).permutation(128256).tolist()
    base = InputTokens("base", {f"t{i}": i for i in range(128256)}, 128256)
    permuted = InputTokens("a", {f"t{i}": order[i] for i in range(128256)}, 128320)
    started = time.process_time()
    found = lay_out(base.ids, 128256, [base, permuted], first=0, base=None, tokens={})
    assert time.process_time() - started < 0.8
    assert found.means == ()
    assert RowTable(found.runs["a"], found.means).row.tolist() == order
