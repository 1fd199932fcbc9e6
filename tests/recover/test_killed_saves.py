"""A save that was killed is never offered, and one that returned always is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.mortal_saves import killed_saves
from support.sweeps import seeds

from mergeops.checkpoint import read_range
from mergeops.errors import SourceError
from mergeops.recover import ShardedReader, open_on_base

KILLS = int(os.environ.get("KILLS", "4"))
"""Of each kind; KILLS=17 kills 51 times."""


@pytest.mark.parametrize("seed", seeds(KILLS, always=0))
@pytest.mark.parametrize("kind", ["fsdp", "verl", "slices"])
def test_a_killed_save_is_offered_only_where_it_is_whole(
    trained_base: Path, tmp_path: Path, kind: str, seed: int
) -> None:
    done = killed_saves(trained_base, tmp_path, kind, seed)
    base = load_file(trained_base / "model.safetensors")
    offered = []
    for folder in sorted(tmp_path.glob("checkpoint-*")):
        try:
            model = open_on_base(folder, trained_base)
        except SourceError as error:
            assert "\n" not in str(error)
            continue
        offered.append(folder.name)
        added = int(folder.name.rpartition("-")[2])
        with ShardedReader(model) as reader:
            for name, tensor in base.items():
                expected = tensor
                for _ in range(added):
                    expected = expected + 1.0
                found = read_range(reader, name, 0, tensor.numel()).view(tensor.shape)
                assert found.equal(expected), (folder, name)
    assert set(done) <= set(offered)
