"""Who decides which items are dev and which confirm: the items themselves."""

from __future__ import annotations

import random

import pytest

from mergeops.evaluate.split import item_digest, part_ids, split_units

ITEMS = [{"q": f"question {i}", "a": i} for i in range(2000)]


def chosen(
    items: list[dict[str, object]], part: str, *, fraction: float = 0.5, salt: str = "", limit=None
) -> list[object]:
    digests = [item_digest(item) for item in items]
    units = split_units(digests, digests, [None] * len(items))
    ids = part_ids(digests, part, units=units, confirm_fraction=fraction, salt=salt, limit=limit)
    assert list(ids) == sorted(ids)
    return [items[i]["a"] for i in ids]


def test_every_item_is_in_exactly_one_part() -> None:
    dev, confirm = chosen(ITEMS, "dev"), chosen(ITEMS, "confirm")
    assert sorted([*dev, *confirm]) == list(range(2000))


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.95])
def test_the_confirm_part_has_about_the_share_that_was_asked_for(fraction: float) -> None:
    share = len(chosen(ITEMS, "confirm", fraction=fraction)) / 2000
    # Four standard errors of a share of 2000 items are at most 4.5 points.
    assert share == pytest.approx(fraction, abs=0.045)


def test_the_order_of_the_items_does_not_matter() -> None:
    shuffled = ITEMS.copy()
    random.Random(1).shuffle(shuffled)
    assert set(chosen(shuffled, "dev")) == set(chosen(ITEMS, "dev"))
    assert set(chosen(shuffled, "dev", limit=50)) == set(chosen(ITEMS, "dev", limit=50))


def test_more_items_do_not_move_the_others() -> None:
    assert set(chosen(ITEMS[:500], "confirm")) <= set(chosen(ITEMS, "confirm"))


def test_copies_of_an_item_are_in_the_same_part() -> None:
    twice = [*ITEMS[:100], *ITEMS[:100]]
    assert not set(chosen(twice, "dev")) & set(chosen(twice, "confirm"))


def test_the_order_of_keys_is_not_part_of_an_item() -> None:
    assert item_digest({"a": 1, "b": 2}) == item_digest({"b": 2, "a": 1})


def test_another_salt_splits_otherwise() -> None:
    assert chosen(ITEMS, "dev") != chosen(ITEMS, "dev", salt="x")


def test_a_smaller_limit_keeps_a_subset_of_a_larger_one() -> None:
    small, large = chosen(ITEMS, "dev", limit=30), chosen(ITEMS, "dev", limit=300)
    assert (len(small), len(large)) == (30, 300)
    assert set(small) <= set(large) <= set(chosen(ITEMS, "dev"))


def test_a_limit_does_not_take_the_first_items_of_the_file() -> None:
    assert max(chosen(ITEMS, "dev", limit=30)) > 1000


def test_bytes_in_an_item_count_by_their_value() -> None:
    assert item_digest({"a": b"\x00"}) == item_digest({"a": b"\x00"})
    assert item_digest({"a": b"\x00"}) != item_digest({"a": b"\x01"})


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match="part is 'test'; allowed: dev, confirm"):
        part_ids([], "test", units=[], confirm_fraction=0.5, salt="", limit=None)


def test_items_that_ask_the_same_and_items_of_a_cluster_are_one_unit() -> None:
    questions = ["p", "q", "p", "r", "s"]
    clusters = [None, None, None, "one", "one"]
    assert split_units(list("edcba"), questions, clusters) == ["c", "d", "c", "one", "one"]


def test_another_prompt_for_the_same_items_leaves_each_in_its_part() -> None:
    digests = list("edcba")
    nothing = [None] * 5
    assert split_units(digests, list("vwxyz"), nothing) == split_units(
        digests, list("12345"), nothing
    )
