"""The cost of the bytes alone: read all inputs, write as much as the result, and bring it to disk.

    python floor.py THREADS OUT BYTES_TO_WRITE INPUT...

It does what no merge can avoid and nothing more: the inputs go through a small buffer, as the
output comes from one. Standard library only, so that starting costs nothing either.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

STEP = 1 << 20


def copy_cost(out: str, nbytes: int, inputs: list[str], threads: int) -> None:
    """Read ``inputs`` and write ``nbytes`` to ``out``, each cut into a range for each thread."""
    for directory in (os.path.dirname(out),):
        os.makedirs(directory, exist_ok=True)
    files = [os.open(path, os.O_RDONLY) for path in inputs]
    target = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.posix_fallocate(target, 0, nbytes)

    def work(part: int) -> None:
        buffer = memoryview(bytearray(STEP))
        for file in files:
            size = os.fstat(file).st_size
            for at in range(size * part // threads, size * (part + 1) // threads, STEP):
                os.preadv(file, [buffer[: size * (part + 1) // threads - at]], at)
        last = nbytes * (part + 1) // threads
        for at in range(nbytes * part // threads, last, STEP):
            os.pwrite(target, buffer[: last - at], at)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, part) for part in range(threads)]:
            done.result()
    os.fsync(target)


if __name__ == "__main__":
    copy_cost(sys.argv[2], int(sys.argv[3]), sys.argv[4:], int(sys.argv[1]))
