"""Compiled kernels without the compiler: object code that is kept on disk, loaded and called.

``$XDG_CACHE_HOME/mergeops/kernels/KEY.kernels`` (``~/.cache`` by default) holds what numba made on
this machine once. The key stands for the kernels' text, the versions of the compiler and the
processor. Where the file is missing or damaged, the kernels are compiled anew, in a process of
their own: in this one the compiler would hold Python's lock and keep it from ending. Where the file
cannot be written, the kernels come back through a pipe, and the next process compiles again.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import json
import logging
import os
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mergeops.kernels.blocks import BLOCK, RAISED
from mergeops.kernels.cache_folder import user_cache

Kernel = Callable[..., int]

_SLOTS = {"int64": "q", "uint64": "Q", "bool": "q", "float64": "d", "float32": "d"}
"""Format of a number's slot."""
_COMPILE = "import sys; from mergeops.kernels.loader import make; make(*sys.argv[1:])"
_LOOK = 0.2
"""Seconds until it is looked again whether this process ends."""
_lock = threading.Lock()


def loaded(name: str) -> Kernel:
    """A compiled kernel.

    It is called with the arguments of its source, which are checked, and runs without Python's
    lock. What it returns is a number: 0 or 1 for a bool, 0 for nothing.

    Raises:
        ArithmeticError: by the kernel, which raised.
        TypeError: by the kernel, for an argument of another type.
    """
    with _lock:
        return _kernels()[name]


def is_loaded() -> bool:
    """Whether the kernels can be called at once; nothing is loaded for the question."""
    return _kernels.cache_info().currsize > 0


def are_kept() -> bool:
    """Whether this machine has compiled the kernels before, so that they are loaded in no time."""
    try:
        key = _key()
    except (ImportError, OSError, RuntimeError):
        # What is wrong with the compiler is said by who needs it.
        return False
    return _read(_place(key), key) is not None


@functools.cache
def _kernels() -> Mapping[str, Kernel]:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    key = _key()
    path = _place(key)
    content = _read(path, key)
    if content is None:
        content = _compiled(path, key)
    about, _, code = content.partition(b"\n")
    kinds = json.loads(about)
    library = llvm.JITLibraryBuilder().add_object_img(code).add_current_process()
    for name in kinds:
        library.export_symbol(f"mergeops_{name}")
    jit = llvm.create_lljit_compiler(use_jit_link=True)
    loaded = library.link(jit, "mergeops")
    # The code stays until the process ends, whatever is torn down before.
    loaded.detach()
    jit.detach()
    return {n: _caller(n, loaded[f"mergeops_{n}"], of) for n, of in kinds.items()}


def _key() -> str:
    import llvmlite.binding as llvm

    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    processor = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    compilers = version("numba"), version("llvmlite"), llvm.get_process_triple()
    digest.update(repr((BLOCK, processor, compilers)).encode())
    return digest.hexdigest()


def _place(key: str) -> Path:
    return user_cache("kernels") / f"{key}.kernels"


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).hexdigest().encode()


def _read(path: Path, key: str) -> bytes | None:
    """What was kept, or None where it is missing or not what was written for this key."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return content if digest == _digest(key, content) else None


def _compiled(path: Path, key: str) -> bytes:
    """What another process compiles, and keeps there; it goes on if this one ends before it.

    Raises:
        RuntimeError: it fails, or this process ends.
    """
    # It finds the modules that this process finds, and none besides.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _COMPILE, str(path), key],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while True:
        try:
            out, errors = process.communicate(timeout=_LOOK)
            break
        except subprocess.TimeoutExpired:
            if not threading.main_thread().is_alive():
                raise RuntimeError("not compiled yet") from None
    content = out or _read(path, key)
    lines = errors.decode(errors="replace").strip().splitlines()
    if process.returncode != 0 or content is None:
        why = lines[-1] if lines else f"it ended with {process.returncode}"
        raise RuntimeError(f"the process that compiles them failed: {why}")
    if out:
        log = logging.getLogger(__name__)
        log.info("compiled kernels are not kept in %s: %s", path.parent, "".join(lines[-1:]))
    return content


def make(place: str, key: str) -> None:
    """What the other process does: compile, once another one that is at it is done, and keep what
    was made; where that cannot be, write it to the standard output and why to the standard error.

    Args:
        place: the file to make.
        key: what it is for.
    """
    path = Path(place)
    with contextlib.ExitStack() as held:
        # Merges that are done before the compiler may follow one another.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(open(path.with_suffix(".lock"), "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        if _read(path, key) is not None:
            return
        from mergeops.kernels.compiler import compiled

        content = compiled()
        try:
            _keep(path, key, content)
        except OSError as error:
            print(error.strerror or error, file=sys.stderr)
            sys.stdout.buffer.write(content)


def _keep(path: Path, key: str, content: bytes) -> None:
    """Put what was compiled for a key there.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with open(file, "wb") as out:
            out.write(_digest(key, content) + b"\n" + content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _caller(name: str, address: int, kinds: Sequence[tuple[str, int]]) -> Kernel:
    # Python's lock is released while a function of this type runs.
    entry = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p)(address)
    slots = struct.Struct("".join("q" * (1 + n) if n else _SLOTS[dtype] for dtype, n in kinds))
    wanted = [(np.dtype(dtype) if n else None, n) for dtype, n in kinds]

    def call(*arguments: Any) -> int:
        values: list[Any] = []
        for i, (argument, (dtype, ndim)) in enumerate(zip(arguments, wanted, strict=True)):
            if dtype is None:
                values.append(argument)
                continue
            if (
                not isinstance(argument, np.ndarray)
                or argument.dtype != dtype
                or argument.ndim != ndim
                or not argument.flags.carray
            ):
                raise TypeError(
                    f"argument {i} of {name} is not an array of {dtype} with {ndim} dimensions, "
                    "in C order, aligned and writable"
                )
            values += _address(argument), *argument.shape
        try:
            answer: int = entry(slots.pack(*values))
        except struct.error as error:
            raise TypeError(f"a number among the arguments of {name}: {error}") from None
        if answer == RAISED:
            raise ArithmeticError(f"the compiled kernel {name} failed")
        return answer

    return call


def _address(array: Any) -> int:
    """The fastest way to it; 0 for an empty array, which has no first byte."""
    return ctypes.addressof(ctypes.c_char.from_buffer(array)) if array.size else 0
