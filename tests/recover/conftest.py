"""What sharded trainings left, written once by two processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.sharded_writers import write_all

from mergeops.checkpoint import read_range
from mergeops.recover import ShardedReader, leftover


@pytest.fixture(scope="session")
def trained_base(tiny_llama: Callable[..., Path]) -> Path:
    """The model that was trained; 131 rows do not divide evenly."""
    return tiny_llama(vocabulary_size=131)


@pytest.fixture(scope="session")
def written(trained_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of ``write_all``; copy one before you change it."""
    out = tmp_path_factory.mktemp("sharded")
    write_all(trained_base, out)
    return out


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A folder of ``written``, to be damaged."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(written / name, tmp_path / Path(name).name))

    return copy


@pytest.fixture(scope="session")
def read_all() -> Callable[[Path], dict[str, Any]]:
    """Every tensor that ``leftover`` finds in a directory."""

    def read(directory: Path) -> dict[str, Any]:
        found = leftover(directory)
        assert found is not None
        assert found.problem is None
        assert found.shards is not None
        with ShardedReader(found.shards) as reader:
            return {
                name: read_range(reader, name, 0, tensor.numel).view(tensor.shape)
                for name, tensor in found.shards.tensors.items()
            }

    return read
