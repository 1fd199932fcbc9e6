"""Hashing along: whoever reads a file, in whatever order, its digest is that of its bytes."""

from __future__ import annotations

import hashlib
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mergeops.checkpoint import HashAlong, stamp
from mergeops.checkpoint import hash_along as module
from mergeops.errors import SourceError

KIB = 1 << 10


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(random.Random(0).randbytes(300 * KIB + 17))
    return path


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def along(*paths: Path) -> HashAlong:
    return HashAlong({path: stamp(path) for path in paths}, len(paths))


def bring(hashes: HashAlong, path: Path, ranges: list[tuple[int, int]], threads: int = 1) -> None:
    content = path.read_bytes()
    take = hashes.follow(path)
    assert take is not None

    def bring_one(piece: tuple[int, int]) -> None:
        # What is given may be overwritten as soon as it was taken.
        data = bytearray(content[slice(*piece)])
        with hashes.taking():
            take(piece[0], memoryview(data))
        data[:] = bytes(len(data))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(bring_one, ranges))


def pieces(size: int, length: int) -> list[tuple[int, int]]:
    return [(at, min(at + length, size)) for at in range(0, size, length)]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("order", ["forward", "backward", "shuffled", "with holes", "overlapping"])
@pytest.mark.parametrize("room", [16 * KIB, 1 << 22])
def test_the_digest_is_that_of_the_file_in_whatever_order_it_is_read(
    file: Path, order: str, threads: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LEAST_WAITING", room)
    monkeypatch.setattr(module, "_MOST_WAITING", room)
    size = file.stat().st_size
    ranges = pieces(size, 5000)
    if order == "backward":
        ranges.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(ranges)
    elif order == "with holes":
        ranges = ranges[3:40:2]
    elif order == "overlapping":
        ranges = [(max(start - 3000, 0), stop) for start, stop in ranges for _ in range(2)]
    with along(file) as hashes:
        bring(hashes, file, ranges, threads)
        assert hashes.finish() == {file: hashlib.sha256(file.read_bytes()).hexdigest()}


def test_what_is_brought_in_order_is_not_read_again(file: Path) -> None:
    size = file.stat().st_size
    with along(file) as hashes:
        swapped = pieces(size, 7000)
        swapped[0], swapped[1] = swapped[1], swapped[0]
        bring(hashes, file, swapped, threads=4)
        before = bytes_read()
        hashes.finish()
        # Reading the counter is counted, too.
        assert bytes_read() - before < KIB


def test_a_look_that_is_not_taken_is_not_hashed(file: Path) -> None:
    with along(file) as hashes:
        take = hashes.follow(file)
        assert take is not None
        take(0, memoryview(b"other bytes"))
        assert hashes.finish()[file] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_one_file_by_two_names_is_hashed_once(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    before = bytes_read()
    with along(file, link) as hashes:
        digests = hashes.finish()
    assert bytes_read() - before < 1.1 * file.stat().st_size
    assert digests[file] == digests[link] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert hashes.follow(tmp_path / "other") is None


def test_a_file_that_changes_is_refused(file: Path) -> None:
    with along(file) as hashes:
        os.utime(file, ns=(1, 1))
        with pytest.raises(SourceError, match="weights changed while it was merged; run the"):
            hashes.finish()


def test_a_file_that_was_cut_is_refused(file: Path) -> None:
    with along(file) as hashes:
        os.truncate(file, 1000)
        with pytest.raises(SourceError, match="weights ends at byte 1000: it was cut"):
            hashes.finish()


def test_a_file_that_is_gone_is_refused(file: Path) -> None:
    seen = stamp(file)
    file.unlink()
    with pytest.raises(SourceError, match="weights cannot be read: No such file"):
        HashAlong({file: seen}, 1)
