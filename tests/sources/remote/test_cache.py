"""The cache of downloads: each content once, below its limit, never what is in use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mergeops.errors import ConfigError, SourceError
from mergeops.recipe.recipe import Recipe
from mergeops.sources.remote import cache as downloads
from mergeops.sources.remote.cache import Downloads
from mergeops.sources.remote.directory import RemoteDirectory
from mergeops.sources.remote.download import fetch
from mergeops.sources.resolution import resolve

MB = 1 << 20


class Far(LocalArtifactRepository):  # type: ignore[misc]
    """A real artifact repository that is read as if it were far away."""

    fetched = 0

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        super()._download_file(remote_file_path, local_path)
        self.fetched += 1


def far(folder: Path, name: str, fill: bytes, size: int = MB) -> RemoteDirectory:
    """A directory of two files at a store: weights of one byte value, and a config."""
    (folder / name).mkdir(parents=True)
    (folder / name / "model.safetensors").write_bytes(fill * size)
    (folder / name / "config.json").write_text("{}")
    return RemoteDirectory(Far((folder / name).as_uri()), f"s3://bucket/{name}")


@pytest.fixture(autouse=True)
def nothing_in_use() -> Iterator[None]:
    yield
    forget()


def forget() -> None:
    """Give up what this process uses, as its end would."""
    while downloads._held:
        os.close(downloads._held.popitem()[1])


def du(folder: Path) -> int:
    """Blocks of everything below a directory, in bytes, as the system's tool counts them."""
    out = subprocess.run(
        ["find", str(folder), "-mindepth", "1", "-printf", "%b\n"],
        check=True,
        capture_output=True,
        text=True,
    )
    return sum(512 * int(line) for line in out.stdout.split())


def test_equal_contents_are_kept_once(tmp_path: Path) -> None:
    one = fetch(far(tmp_path / "far", "one", b"a"), tmp_path / "cache")
    two = fetch(far(tmp_path / "far", "two", b"a"), tmp_path / "cache")
    assert one != two
    assert (one / "model.safetensors").resolve() == (two / "model.safetensors").resolve()
    assert len(list((tmp_path / "cache/blobs").iterdir())) == 2
    assert (two / "model.safetensors").read_bytes() == b"a" * MB


def test_a_content_in_use_stays_the_same_file_when_it_arrives_again(tmp_path: Path) -> None:
    one = fetch(far(tmp_path / "far", "one", b"a"), tmp_path / "cache")
    before = (one / "model.safetensors").stat()
    fetch(far(tmp_path / "far", "two", b"a"), tmp_path / "cache")
    assert (one / "model.safetensors").stat() == before


def test_contents_are_named_by_their_sha256(tmp_path: Path) -> None:
    import hashlib

    fetch(far(tmp_path / "far", "one", b"a"), tmp_path / "cache")
    for blob in (tmp_path / "cache/blobs").iterdir():
        assert blob.name == hashlib.sha256(blob.read_bytes()).hexdigest()


def test_the_longest_unused_leaves_first(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    limit = 3 * MB + MB // 2
    places = {n: far(tmp_path / "far", n, n.encode()) for n in "abcd"}
    found = {n: fetch(places[n], cache, limit=limit) for n in "abc"}
    forget()
    for age, name in enumerate("bca"):
        os.utime(found[name] / "mergeops-download.json", ns=(age, age))
    fetch(places["d"], cache, limit=limit)
    assert [name for name in "abc" if found[name].exists()] == ["a", "c"]
    assert Downloads(cache).used() <= limit
    forget()
    assert fetch(places["b"], cache, limit=limit) == found["b"]
    assert places["b"].repository.fetched == 4


def test_use_makes_a_download_young_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    places = {n: far(tmp_path / "far", n, n.encode()) for n in "abc"}
    found = {n: fetch(places[n], cache) for n in "ab"}
    for age, name in enumerate("ab"):
        os.utime(found[name] / "mergeops-download.json", ns=(age, age))
    fetch(places["a"], cache)
    forget()
    fetch(places["c"], cache, limit=2 * MB + MB // 2)
    assert (found["a"].exists(), found["b"].exists()) == (True, False)


def test_what_a_merge_uses_is_never_removed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    used = fetch(far(tmp_path / "far", "a", b"a"), cache)
    with pytest.raises(SourceError) as refused:
        fetch(far(tmp_path / "far", "b", b"b"), cache, limit=MB + MB // 2)
    assert str(refused.value) == (
        f"s3://bucket/b needs 1.0 MB in the cache {cache}, where 1.1 MB of 1.6 MB are in use "
        "now; raise output.cache_limit"
    )
    assert (used / "model.safetensors").read_bytes() == b"a" * MB


IN_USE = """
import sys
from pathlib import Path
from mergeops.sources.remote.cache import Downloads
assert Downloads(Path(sys.argv[1])).find(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


def test_what_another_process_uses_is_not_removed_until_it_ends(tmp_path: Path) -> None:
    cache, limit = tmp_path / "cache", MB + MB // 2
    used = fetch(far(tmp_path / "far", "a", b"a"), cache)
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(IN_USE), str(cache), used.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdin and other.stdout
    assert other.stdout.readline() == "held\n"
    forget()
    place = far(tmp_path / "far", "b", b"b")
    with pytest.raises(SourceError, match="raise output.cache_limit"):
        fetch(place, cache, limit=limit)
    other.kill()
    other.wait()
    fetch(place, cache, limit=limit)
    assert not used.exists()


def test_what_the_cache_takes_is_counted_as_du_counts(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fetch(far(tmp_path / "far", "a", b"a"), cache)
    fetch(far(tmp_path / "far", "b", b"a"), cache)
    there = Downloads(cache).used()
    assert MB < there < MB + MB // 4
    assert there == du(cache / "blobs") + du(cache / "downloads")


def test_a_full_disk_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    place = far(tmp_path / "far", "a", b"a")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(
        SourceError, match=r"needs 1.0 MB, but only .* are free there; free some, or set"
    ):
        fetch(place, tmp_path / "cache")
    assert place.repository.fetched == 0


def test_a_damaged_content_is_fetched_again(tmp_path: Path) -> None:
    place = far(tmp_path / "far", "a", b"a")
    there = fetch(place, tmp_path / "cache")
    with open(there / "model.safetensors", "r+b") as file:
        file.write(b"x")
    forget()
    assert fetch(place, tmp_path / "cache") == there
    assert (there / "model.safetensors").read_bytes() == b"a" * MB


def test_a_limit_without_a_unit_is_refused() -> None:
    recipe = Recipe.from_dict({"method": {"name": "linear"}, "output": {"cache_limit": "5"}})
    with pytest.raises(ConfigError, match="output.cache_limit is '5'; write a number with one of"):
        resolve(recipe, cache_dir=Path("nowhere"))


def test_the_leftovers_of_a_killed_download_leave_with_the_oldest(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    parts = Downloads(cache)._folder / "0123.parts"
    parts.mkdir()
    (parts / "model.safetensors.part").write_bytes(b"x" * MB)
    place: Any = far(tmp_path / "far", "a", b"a")
    fetch(place, cache, limit=MB + MB // 2)
    assert not parts.exists()
