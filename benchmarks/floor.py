"""The cost of the bytes alone: read all inputs, write as much as the result, bring it to the disk.

    python floor.py THREADS OUT BYTES_TO_WRITE INPUT...

What no merge can avoid, and nothing more: inputs go into a small buffer, the output comes from one.
The standard library does it, so that starting costs next to nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

STEP = 1 << 20


def move_bytes(out: str, nbytes: int, inputs: Sequence[str], threads: int) -> None:
    """Read ``inputs`` and write ``nbytes`` to ``out``, each cut into a range for each thread."""
    files = [os.open(path, os.O_RDONLY) for path in inputs]
    target = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.posix_fallocate(target, 0, nbytes)

    def work(part: int) -> None:
        buffer = memoryview(bytearray(STEP))
        for file in files:
            begin, end = _range(os.fstat(file).st_size, part, threads)
            for at in range(begin, end, STEP):
                os.preadv(file, [buffer[: end - at]], at)
        begin, end = _range(nbytes, part, threads)
        for at in range(begin, end, STEP):
            os.pwrite(target, buffer[: end - at], at)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, part) for part in range(threads)]:
            done.result()
    os.fsync(target)


def _range(size: int, part: int, parts: int) -> tuple[int, int]:
    return size * part // parts, size * (part + 1) // parts


if __name__ == "__main__":
    move_bytes(sys.argv[2], int(sys.argv[3]), sys.argv[4:], int(sys.argv[1]))
