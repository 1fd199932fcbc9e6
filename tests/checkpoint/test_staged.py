"""Weight files that are read from copies on a disk of the machine's own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mergeops.checkpoint import STAGE_VARIABLE, open_checkpoint
from mergeops.checkpoint.reader import CheckpointReader
from mergeops.errors import SourceError


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(STAGE_VARIABLE, str(tmp_path / "stage"))
    return tmp_path / "stage"


def content(model: Path) -> dict[str, bytes]:
    """What a reader gives of every tensor."""
    checkpoint = open_checkpoint(model)
    with CheckpointReader(checkpoint) as reader:
        read = {}
        for name, tensor in checkpoint.tensors.items():
            staging = np.zeros(tensor.numel * 8, np.uint8)
            reader.read(name, 0, tensor.numel, staging)
            read[name] = staging.tobytes()
        return read


def copies(stage: Path) -> list[Path]:
    return sorted(path for path in stage.iterdir() if not path.name.startswith("."))


def test_a_file_is_copied_once_and_the_copy_is_read(
    tiny_llama: Callable[..., Path], stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    monkeypatch.delenv(STAGE_VARIABLE)
    plain = content(model)
    monkeypatch.setenv(STAGE_VARIABLE, str(stage))
    assert content(model) == plain
    [copy] = copies(stage)
    assert copy.read_bytes() == (model / "model.safetensors").read_bytes()
    # Another content of the copy shows that it is what is read, and that it is not made again.
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    assert content(model) != plain


def test_a_file_that_changed_is_copied_anew(tiny_llama: Callable[..., Path], stage: Path) -> None:
    model = tiny_llama()
    content(model)
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    changed = content(model)
    assert len(copies(stage)) == 2
    shutil.rmtree(stage)
    os.environ.pop(STAGE_VARIABLE)
    assert content(model) == changed


def test_a_copy_that_has_no_room_is_refused_before_it_is_begun(
    tiny_llama: Callable[..., Path], stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(SourceError, match=r"executor.stage is .*stage, which has 0.00 GB free"):
        content(model)
    assert copies(stage) == []


def test_a_file_that_changes_while_it_is_copied_is_refused(
    tiny_llama: Callable[..., Path], stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    copyfile = shutil.copyfile

    def meanwhile(source: Path, target: Path) -> None:
        copyfile(source, target)
        source.write_bytes(source.read_bytes())

    monkeypatch.setattr(shutil, "copyfile", meanwhile)
    with pytest.raises(SourceError, match="changed after the merge was planned"):
        content(model)
    assert copies(stage) == []


def test_a_stage_that_cannot_be_written_is_named(
    tiny_llama: Callable[..., Path], stage: Path
) -> None:
    model = tiny_llama()
    stage.write_text("no directory")
    with pytest.raises(SourceError, match="stage: File exists"):
        content(model)
