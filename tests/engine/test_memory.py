"""What is free in a heap full of holes goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mergeops.engine import memory

HOLES = """
import ctypes
from mergeops.engine import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks, pins = [], []
for _ in range(6000):
    blocks.append(libc.malloc(60_000))
    ctypes.memset(blocks[-1], 1, 60_000)
    pins.append(libc.malloc(64))
memory.tidy()
full = memory.anonymous_bytes()
for block in blocks:
    libc.free(block)
free = memory.anonymous_bytes()
memory.tidy()
within = memory.anonymous_bytes()
memory._limit = 0
memory.tidy()
print(full, free, within, memory.anonymous_bytes())
"""


def test_holes_are_given_back_when_the_process_has_grown() -> None:
    ran = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    full, free, within, after = map(int, ran.stdout.split())
    assert full > 360e6 and free > 300e6, "the holes are the process's"
    assert within > 300e6, "it has not grown: nothing is given back"
    assert after < 120e6


def test_another_system_has_nothing_to_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_trim", lambda: None)
    monkeypatch.setattr(memory, "anonymous_bytes", lambda: pytest.fail("there is no /proc"))
    memory.tidy()
