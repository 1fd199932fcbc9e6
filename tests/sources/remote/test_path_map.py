"""Moved storage."""

from __future__ import annotations

import pytest

from mergeops.sources.remote.directory import moved


@pytest.mark.parametrize(
    ("logged", "now"),
    [
        ("/data/run/checkpoint-2", "/new/run/checkpoint-2"),
        ("/data", "/new"),
        ("/data/", "/new/"),
        ("/database/run", "/database/run"),
        ("/data/big/run", "s3://bucket/run"),
        ("file:///data/run", "/new/run"),
        ("s3://old/run", "s3://other/place/run"),
        ("outputs/run", "/train/outputs/run"),
        ("elsewhere", "elsewhere"),
    ],
)
def test_the_longest_prefix_of_whole_components_is_replaced(logged: str, now: str) -> None:
    path_map = {
        "/data": "/new",
        "/data/big/": "s3://bucket",
        "s3://old": "s3://other/place/",
        "outputs": "/train/outputs",
        "": "/never",
    }
    assert moved(logged, path_map) == now


def test_without_a_map_nothing_moves() -> None:
    assert moved("/data/run", {}) == "/data/run"
