"""Compiled kernels are kept on disk, checked, and loaded without the compiler."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from mergeops.kernels import compiler
from mergeops.kernels import loader as native
from mergeops.methods.steps import fused

INDEX, REAL = numba.int64, numba.float64
INTS, INT_ROWS, SUMS = numba.int64[::1], numba.int64[:, ::1], numba.float64[:, ::1]

MERGE = """
import sys
from mergeops.methods.steps import fused
assert fused.kernels().result()
print(sorted({"numba", "scipy"} & set(sys.modules)))
"""


def loading(cache: Path) -> subprocess.Popen[str]:
    """A process that merges one value with kernels."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", MERGE], env=environment, stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate()
    assert process.returncode == 0
    return out.strip()


@pytest.fixture
def fresh() -> Iterator[None]:
    """Kernels are loaded in this test as in a new process."""
    native._kernels.cache_clear()
    fused.kernels.cache_clear()
    yield
    native._kernels.cache_clear()
    fused.kernels.cache_clear()


@pytest.fixture(scope="module")
def made() -> bytes:
    """What the compiler made for this machine, now or before."""
    key = native._key()
    assert fused.kernels().result()
    content = native._read(native._place(key), key)
    assert content is not None, "this user keeps nothing"
    return content


@pytest.fixture
def compilations(made: bytes, fresh: None, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each time that kernels are compiled from now on, which takes no time."""
    found: list[None] = []

    def compiled(path: Path, key: str) -> bytes:
        found.append(None)
        with contextlib.suppress(OSError):
            native._keep(path, key, made)
        return made

    monkeypatch.setattr(native, "_compiled", compiled)
    return found


def load_anew() -> bool:
    native._kernels.cache_clear()
    fused.kernels.cache_clear()
    return fused.kernels().result()


def kept(cache: Path) -> Path:
    (path,) = (cache / "mergeops" / "kernels").glob("*.kernels")
    return path


@pytest.mark.slow
def test_a_process_that_ends_does_not_wait_and_those_that_begin_at_once_find_its_kernels(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    script = "from mergeops.methods.steps import fused; fused.kernels()"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")
    assert not list(tmp_path.rglob("*.kernels"))
    first, second = loading(tmp_path), loading(tmp_path)
    assert said(first) == said(second) == "[]"
    before = kept(tmp_path).stat().st_mtime_ns
    assert said(loading(tmp_path)) == "[]"
    assert kept(tmp_path).stat().st_mtime_ns == before


def test_who_waited_for_another_compiler_compiles_nothing(made: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key.kernels"
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-c", native._COMPILE, str(path), "key"]
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        native._keep(path, "key", made)
        before = path.stat().st_mtime_ns
    assert waiting.communicate()[0] == b"" and waiting.returncode == 0
    assert path.stat().st_mtime_ns == before


def test_kernels_come_through_a_pipe_where_nothing_can_be_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    # More than a pipe holds, and made in no time.
    compiles = "from mergeops.kernels import compiler; compiler.compiled = lambda: b'x' * 2**20; "
    monkeypatch.setattr(native, "_COMPILE", compiles + native._COMPILE)
    with caplog.at_level(logging.INFO):
        found = native._compiled(tmp_path / "file" / "kernels" / "key.kernels", "key")
    (said,) = caplog.messages
    assert said == f"compiled kernels are not kept in {tmp_path}/file/kernels: Not a directory"
    assert found == b"x" * 2**20


def test_a_compiler_that_fails_is_an_error_with_its_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_COMPILE", "raise MemoryError('too little')")
    with pytest.raises(RuntimeError, match="compiles them failed: MemoryError: too little"):
        native._compiled(tmp_path / "key.kernels", "key")
    monkeypatch.setattr(native, "_COMPILE", "import os; os._exit(3)")
    with pytest.raises(RuntimeError, match="compiles them failed: it ended with 3"):
        native._compiled(tmp_path / "key.kernels", "key")
    monkeypatch.setattr(native, "_COMPILE", "pass")
    with pytest.raises(RuntimeError, match="compiles them failed: it ended with 0"):
        native._compiled(tmp_path / "key.kernels", "key")


def test_the_compiler_sees_no_module_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llvmlite.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(native, "_COMPILE", "import llvmlite.binding, sys; print(sys.argv[2])")
    assert native._compiled(tmp_path / "key.kernels", "a-key") == b"a-key\n"


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


def empty(content: bytes) -> bytes:
    return b""


def of_another_key(content: bytes) -> bytes:
    body = content.partition(b"\n")[2]
    return native._digest("another", body) + b"\n" + body


@pytest.mark.parametrize("damage", [cut, flip, empty, of_another_key])
def test_a_damaged_or_foreign_file_is_not_loaded_but_made_anew(
    damage: Callable[[bytes], bytes],
    compilations: list[None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not native.are_kept()
    assert load_anew() and load_anew() and len(compilations) == 1
    assert native.are_kept()
    whole = kept(tmp_path).read_bytes()
    kept(tmp_path).write_bytes(damage(whole))
    assert not native.are_kept()
    assert load_anew() and load_anew() and len(compilations) == 2
    assert kept(tmp_path).read_bytes() == whole


@pytest.mark.parametrize(
    "change", ["mergeops.kernels.loader.version", "llvmlite.binding.get_host_cpu_name"]
)
def test_another_compiler_or_processor_has_kernels_of_its_own(
    change: str, compilations: list[None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_anew()
    monkeypatch.setattr(change, lambda *package: "another")
    assert load_anew() and len(compilations) == 2
    assert len(list(tmp_path.rglob("*.kernels"))) == 2


def test_kernels_compile_where_nothing_can_be_kept(
    compilations: list[None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_anew() and load_anew()
    assert len(compilations) == 2


def test_kernels_compile_for_a_user_without_a_home(
    compilations: list[None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative/does/not/count")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.chdir(tmp_path)
    assert load_anew() and len(compilations) == 1
    assert not list(tmp_path.iterdir())


def test_the_cache_is_in_the_home_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert native._place("key").parent == tmp_path / ".cache" / "mergeops" / "kernels"


def own_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, function: Callable[..., Any], *types: Any
) -> native.Kernel:
    """A kernel of the test instead of all others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_compiled", lambda path, key: compiler.compiled())
    monkeypatch.setattr(compiler, "KERNELS", {function.__name__: (types, function)})
    return native.loaded(function.__name__)


def test_each_kind_of_argument_arrives(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def seen(
        flag: bool, whole: int, real: float, single: np.float32, row: Any, table: Any, out: Any
    ) -> bool:
        out[0, 0] = 1.0 if flag else 0.0
        out[0, 1] = float(whole)
        out[1, 0] = real
        out[1, 1] = np.float64(single)
        out[2, 0] = row[row.size - 1]
        out[2, 1] = table[1, 2] + 10 * table.shape[0] + 100 * table.shape[1]
        return not flag

    types = (numba.boolean, INDEX, REAL, numba.float32, numba.float32[::1], INT_ROWS, SUMS)
    kernel = own_kernel(monkeypatch, tmp_path, seen, *types)
    out = np.zeros((3, 2))
    row, table = np.array([1, 2, 0.5], np.float32), np.arange(6).reshape(2, 3)
    assert kernel(True, -(2**40), 0.1, np.float32(0.1), row, table, out) == 0
    single = float(np.float32(0.1))
    assert out.tolist() == [[1.0, -(2.0**40)], [0.1, single], [0.5, 5 + 20 + 300]]
    assert kernel(False, 0, 0.0, 0.0, row, table, out) == 1


def test_a_kernel_that_raises_is_an_arithmetic_error(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuses(limit: int) -> bool:
        if limit < 0:
            raise ValueError("too low")
        return True

    kernel = own_kernel(monkeypatch, tmp_path, refuses, INDEX)
    assert kernel(1)
    with pytest.raises(ArithmeticError, match="the compiled kernel refuses failed"):
        kernel(-1)


def test_a_kernel_returns_a_number_or_nothing(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def less(key: np.uint64, n: int) -> int:
        return -n if key == np.uint64(2**64 - 1) else n

    def nothing(out: Any) -> None:
        out[0] = 7

    bits_types = numba.uint64, INDEX
    kernel = own_kernel(monkeypatch, tmp_path / "less", less, *bits_types)
    assert kernel(2**64 - 1, 2**40) == -(2**40) and kernel(0, 2**40) == 2**40
    native._kernels.cache_clear()
    out = np.zeros(1, np.int64)
    assert own_kernel(monkeypatch, tmp_path / "nothing", nothing, INTS)(out) == 0 and out[0] == 7


def test_a_kernel_may_not_call_what_needs_numba(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def arc(x: float) -> bool:
        return bool(np.arctan2(x, 1.0) > 0)

    with pytest.raises(RuntimeError, match="kernels call .*, which is not there without numba"):
        own_kernel(monkeypatch, tmp_path, arc, REAL)


def test_a_kernel_may_not_allocate(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def allocates(n: int) -> bool:
        return bool(np.empty(n)[0] > 0)

    with pytest.raises(numba.core.errors.NumbaError, match="No implementation .*empty"):
        own_kernel(monkeypatch, tmp_path, allocates, INDEX)


def test_arguments_of_another_type_are_refused(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def first(row: Any, table: Any, at: int) -> bool:
        return bool(row[at] == table[at, 0])

    kernel = own_kernel(monkeypatch, tmp_path, first, INTS, INT_ROWS, INDEX)
    row, table = np.zeros(4, np.int64), np.zeros((4, 4), np.int64)
    assert kernel(row, table, 0)
    fixed = row.copy()
    fixed.flags.writeable = False
    for bad in (row.astype(np.int32), table, row[::2], fixed, [0, 0, 0, 0]):
        with pytest.raises(TypeError, match="argument 0 of first is not an array of int64 with 1"):
            kernel(bad, table, 0)
    with pytest.raises(TypeError, match="argument 1 of first .* 2 dimensions, in C order"):
        kernel(row, table.T[1:], 0)
    with pytest.raises(TypeError, match="a number among the arguments of first"):
        kernel(row, table, 0.5)
    with pytest.raises(ValueError):
        kernel(row, table)
