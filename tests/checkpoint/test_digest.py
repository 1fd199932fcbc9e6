"""Digests: equal weights are equal wherever they are, and are hashed once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mergeops.checkpoint import adapter_sha256, digest, weights_sha256
from mergeops.errors import SourceError


def test_digest_is_that_of_names_and_hashes(tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama(max_shard_size="20KB")
    lines = [
        f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in sorted(folder.glob("*.safetensors"))
    ]
    assert weights_sha256(folder) == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_copy_has_the_same_digest_whatever_lies_beside(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_llama()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "optimizer.pt").write_bytes(b"x")
    (copy / "extra.safetensors").write_bytes(b"x")
    assert weights_sha256(copy) == weights_sha256(folder)


def test_file_is_hashed_once_until_it_changes(
    tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_llama(), tmp_path / "model"))
    cache = tmp_path / "cache"
    first = weights_sha256(folder, cache_dir=cache)
    hashed: list[Path] = []
    original = digest.file_sha256

    def counted(path: Path, progress: Callable[[int], None] | None = None) -> str:
        hashed.append(path)
        return original(path, progress)

    monkeypatch.setattr(digest, "file_sha256", counted)
    assert weights_sha256(folder, cache_dir=cache) == first
    assert not hashed
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert weights_sha256(folder, cache_dir=cache) == first
    assert len(hashed) == 1


def test_broken_cache_is_ignored(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_llama()
    (tmp_path / "sha256.json").write_text("{broken")
    assert weights_sha256(folder, cache_dir=tmp_path) == weights_sha256(folder)
    assert len(json.loads((tmp_path / "sha256.json").read_text())) == 1


def test_progress_ends_at_the_total(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_llama()
    size = (folder / "model.safetensors").stat().st_size
    for _ in range(2):
        seen: list[tuple[int, int]] = []
        weights_sha256(folder, cache_dir=tmp_path, progress=lambda d, t: seen.append((d, t)))  # noqa: B023
        assert seen[-1] == (size, size)


def test_adapter_digest_depends_on_base_scale_and_weights_but_not_on_places(
    tiny_llama: Callable[..., Path], tiny_lora: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_llama()
    adapter = tiny_lora(base)
    expected = adapter_sha256(adapter, "b")
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    config = json.loads((moved / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/elsewhere"
    (moved / "adapter_config.json").write_text(json.dumps(config))
    assert adapter_sha256(moved, "b") == expected
    assert adapter_sha256(moved, "other") != expected
    config["lora_alpha"] = 99
    (moved / "adapter_config.json").write_text(json.dumps(config))
    assert adapter_sha256(moved, "b") != expected
    assert adapter_sha256(tiny_lora(base, seed=1), "b") != expected
    (moved / "adapter_model.safetensors").unlink()
    with pytest.raises(SourceError, match="adapter_model.safetensors cannot be read"):
        adapter_sha256(moved, "b")


def test_digests_that_cannot_be_kept_are_worked_out_again(
    tiny_llama: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level("INFO"):
        found = weights_sha256(tiny_llama(), cache_dir=tmp_path / "file" / "cache")
    assert found == weights_sha256(tiny_llama())
    assert caplog.messages == [f"digests are not kept in {tmp_path}/file/cache: Not a directory"]


def test_a_pipe_is_no_weights_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match="model.safetensors is not a regular file"):
        digest.file_sha256(tmp_path / "model.safetensors")
