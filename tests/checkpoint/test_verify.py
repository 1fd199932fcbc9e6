"""Verifying: every file and tensor that differs is named, at the speed of the hash."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergeops.checkpoint.header import read_header
from mergeops.checkpoint.manifest import MANIFEST
from mergeops.checkpoint.verification import verify_checkpoint
from mergeops.engine.execute import merge
from mergeops.errors import SourceError

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def merged(plan_of: Make, tiny_llama: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tiny_llama()
    plan = plan_of(
        {"name": "linear"},
        None,
        {"a": tiny_llama(like=base, seed=1), "b": tiny_llama(like=base, seed=2)},
        output={"shard_size": "30KB"},
    )
    return merge(plan, tmp_path_factory.mktemp("merged") / "out", device="cpu")


@pytest.fixture
def copy(merged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(merged, tmp_path / "copy"))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def spoil(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 0x10
    file.write_bytes(content)


def test_the_tensors_that_differ_are_named(copy: Path) -> None:
    file = next(f for f in shards(copy) if len(read_header(f)) > 2)
    first, _, third, *rest = read_header(file).values()
    spoil(file, first.start)
    spoil(file, third.stop - 1)
    assert verify_checkpoint(copy) == [
        f"{file.name} has other content than when it was merged: {first.name}, {third.name}, "
        f"2 of {3 + len(rest)} tensors"
    ]


def test_of_many_tensors_five_are_named(copy: Path) -> None:
    file = max(shards(copy), key=lambda f: len(read_header(f)))
    stored = list(read_header(file).values())
    assert len(stored) > 5
    for tensor in stored:
        spoil(file, tensor.start)
    (problem,) = verify_checkpoint(copy)
    names = ", ".join(tensor.name for tensor in stored[:5])
    assert problem.endswith(
        f": {names} and {len(stored) - 5} more, {len(stored)} of {len(stored)} tensors"
    )


def test_a_header_that_differs_is_told_from_tensors(copy: Path) -> None:
    file = shards(copy)[0]
    text = file.read_bytes()
    at = text.index(b'"format":"pt"') + len(b'"format":"')
    spoil(file, at)
    (problem,) = verify_checkpoint(copy)
    assert problem.endswith("when it was merged: its header differs, its tensors do not")
    file.write_bytes(text[:8] + b"x" + text[9:])
    (problem,) = verify_checkpoint(copy)
    assert "when it was merged: " in problem
    assert "its header is not JSON" in problem
    assert "\n" not in problem


def test_checksums_of_tensors_are_xxh3_of_their_bytes(merged: Path) -> None:
    import xxhash

    manifest = json.loads((merged / "mergeops.json").read_text())
    for file in shards(merged):
        entry = manifest["files"][file.name]
        assert entry["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        expected = {
            name: xxhash.xxh3_128(tensor.contiguous().view(torch.uint8).numpy()).hexdigest()
            for name, tensor in load_file(file).items()
        }
        assert entry["tensors"] == expected


def test_what_is_missing_and_what_is_extra_is_named(copy: Path) -> None:
    (copy / "config.json").unlink()
    (copy / "notes.txt").write_text("mine")
    (copy / "old.safetensors").write_bytes(b"x")
    (copy / ".gitattributes").write_text("x")
    (copy / "mergeops-download.json").write_text("{}")
    assert verify_checkpoint(copy) == [
        "config.json is missing",
        "notes.txt is no part of the merge",
        "old.safetensors is no part of the merge, but would be loaded with it",
    ]


def test_a_merge_of_before_tensors_had_checksums_is_verified_by_file(copy: Path) -> None:
    manifest = json.loads((copy / "mergeops.json").read_text())
    for entry in manifest["files"].values():
        entry.pop("tensors", None)
    (copy / "mergeops.json").write_text(json.dumps(manifest))
    assert verify_checkpoint(copy) == []
    spoil(shards(copy)[0], -1)
    assert verify_checkpoint(copy) == [
        f"{shards(copy)[0].name} has other content than when it was merged"
    ]


def test_a_file_that_cannot_be_read_is_a_problem_beside_the_others(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeops.checkpoint import digest
    from mergeops.errors import SourceError

    original = digest.file_sha256

    def failing(path: Path, progress: Any = None) -> str:
        if path == shards(copy)[0]:
            raise SourceError(f"{path} cannot be read: Input/output error")
        return original(path, progress)

    monkeypatch.setattr(digest, "file_sha256", failing)
    (copy / "config.json").write_bytes((copy / "config.json").read_bytes()[:-1] + b" ")
    assert verify_checkpoint(copy) == [
        "config.json has other content than when it was merged",
        f"{shards(copy)[0]} cannot be read: Input/output error",
    ]


def test_progress_counts_every_byte_once(merged: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify_checkpoint(merged, lambda *state: seen.append(state)) == []
    manifest = json.loads((merged / "mergeops.json").read_text())
    total = sum(entry["size"] for entry in manifest["files"].values())
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {whole for _, whole in seen} == {total}
    assert seen[-1][0] == total


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "it lacks 'format'"),
        ("[]", "it is no JSON object"),
        ('{"format": 1}', "it lacks 'files'"),
        ('{"format": 1, "files": {}}', "it lacks 'plan_digest'"),
        ('{"format": 1, "files": {"a": {"size": "x"}}}', "'a' has no size or no digest"),
    ],
)
def test_a_damaged_manifest_says_what_is_wrong(text: str, why: str, copy: Path) -> None:
    (copy / MANIFEST).write_text(text)
    (problem,) = verify_checkpoint(copy)
    assert f"{MANIFEST} is damaged: {why}" in problem


def test_a_directory_that_is_not_there_is_no_damaged_merge(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gone is not a directory; name that of a merge"):
        verify_checkpoint(tmp_path / "gone")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"files": {"../../secret": {"size": 1, "sha256": "0"}}}, "'../../secret' is no name of a"),
        ({"files": {"/etc/passwd": {"size": 1, "sha256": "0"}}}, "'/etc/passwd' is no name of a"),
        ({"files": {"a": {"size": "1", "sha256": "0"}}}, "'a' has no size or no digest"),
        ({"files": {"a": {"size": 1e400, "sha256": "0"}}}, "'a' has no size or no digest"),
        ({"files": {"a": {"size": 1, "sha256": None}}}, "'a' has no size or no digest"),
        ({"files": {"a": {"size": 1, "sha256": "0", "tensors": [1]}}}, "the tensors of 'a' are no"),
        ({"files": [1]}, ""),
        ({"plan_digest": 3}, "its plan_digest is no text"),
    ],
)
def test_a_manifest_of_other_types_is_damaged_and_leads_nowhere(
    change: dict[str, Any], why: str, copy: Path
) -> None:
    content = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**content, **change}))
    [problem] = verify_checkpoint(copy)
    assert f"{MANIFEST} is damaged: {why}" in problem


def test_a_manifest_that_is_nested_without_end_is_damaged(copy: Path) -> None:
    (copy / MANIFEST).write_text("[" * 50_000)
    [problem] = verify_checkpoint(copy)
    assert f"{MANIFEST} is damaged" in problem
