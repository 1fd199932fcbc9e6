"""Files of ``torch.save``: where the bytes of each tensor lie, without reading them.

Such a file is a ZIP archive, uncompressed: ``data.pkl`` names the tensors, ``data/N`` are their
storages (https://docs.pytorch.org/docs/stable/notes/serialization.html#torch-save-format). The
pickle is read by ``unpickling``, so nothing of the file's is executed.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.checkpoint import item_size
from mergeops.errors import SourceError
from mergeops.recover.sharded import Place
from mergeops.recover.unpickling import PickledName, PickledRecord, plain_dict, unpickle

STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""torch's word -> safetensors name."""
OTHER_DTYPES = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "complex64", "complex128")
"""Named in files, but read by nobody here."""


WRAPPER = "torch._utils._rebuild_wrapper_subclass"
"""Makes the outside of a tensor that stands for one on many processes."""


@dataclass(frozen=True)
class PickledTensor:
    """A tensor of a file, and where it lies."""

    dtype: str
    """safetensors name, or torch's word for a format that has none here."""
    shape: tuple[int, ...]
    place: Place


def read_torch_file(
    path: Path,
    file: str,
    known: Mapping[str, Callable[..., Any] | None],
    start: int = 0,
    size: int | None = None,
) -> Any:
    """What a file of ``torch.save`` holds, with a ``PickledTensor`` for each tensor.

    Args:
        path: the directory.
        file: its name below it.
        known: the classes that it may name beside torch's own of tensors, as ``unpickle`` takes.
        start: first byte, where it lies inside another file.
        size: its bytes, if not all to the end.

    Raises:
        SourceError: it is cut, damaged, in the format of torch before 1.6, or names a class that
            is not known.
    """
    where = path / file
    what = str(where) if size is None else f"{where} at byte {start}"
    if not where.is_file():
        raise SourceError(f"{where} is not there, or no regular file; use an earlier checkpoint")
    try:
        with open(where, "rb") as whole:
            end = os.fstat(whole.fileno()).st_size
            if size is None:
                size = end - start
            if size <= 0 or start < 0 or start + size > end:
                raise SourceError(
                    f"{what} is cut: it should have {size} bytes there, the file has {end}; use an "
                    "earlier checkpoint of the run"
                )
            window: Any = whole if (start, size) == (0, end) else _Window(whole, start, size)
            with zipfile.ZipFile(window) as archive:
                return _read(file, what, archive, window, start, size, known)
    except OSError as error:
        raise SourceError(f"{where} cannot be read: {error.strerror or error}") from error
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        ValueError,
        EOFError,
        struct.error,
        OverflowError,
        LookupError,
    ) as error:
        raise SourceError(
            f"{what} is no whole file of torch.save ({error}): it was cut or damaged, or torch "
            "before 1.6 wrote it; use an earlier checkpoint of the run"
        ) from error


def _read(
    file: str,
    what: str,
    archive: zipfile.ZipFile,
    window: Any,
    start: int,
    size: int,
    known: Mapping[str, Callable[..., Any] | None],
) -> Any:
    members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "data.pkl" not in members:
        raise ValueError("it has no data.pkl")
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise ValueError("its members are compressed")
    if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
        raise ValueError("its bytes are in big-endian order")
    if "constants.pkl" in members:
        raise ValueError("it is a TorchScript program")

    def storage(pid: Any) -> tuple[str, int, int]:
        """(dtype or empty, first byte in the file, bytes) of a storage."""
        kind, named, key, _device, numel = pid
        if kind != "storage" or not isinstance(named, PickledName):
            raise ValueError("an id of something else than a storage")
        info = members[f"data/{key}"]
        window.seek(info.header_offset)
        header = window.read(30)
        names, extra = struct.unpack("<HH", header[26:30])
        at = info.header_offset + 30 + names + extra
        if header[:4] != b"PK\3\4" or at + info.file_size > size:
            raise ValueError(f"storage {key} lies outside the file")
        dtype = STORAGES.get(named.name.rpartition(".")[2], "")
        if dtype and numel * item_size(dtype) > info.file_size:
            raise ValueError(f"storage {key} has {info.file_size} bytes, too few")
        return dtype, start + at, info.file_size

    def rebuild(
        stored: tuple[str, int, int],
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        _requires_grad: bool,
        _hooks: Any,
        *more: Any,
    ) -> PickledTensor:
        dtype, at, there = stored
        if not dtype:
            named = next(m for m in more if isinstance(m, PickledName))
            word = named.name.removeprefix("torch.")
            dtype = DTYPES.get(word, word)
        shape, strides = tuple(shape), tuple(strides)
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise ValueError("a tensor whose shape or strides are no lists of numbers")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if dtype in DTYPES.values():
            if 0 not in shape and (last + 1) * item_size(dtype) > there:
                raise ValueError(f"a tensor of shape {shape} lies outside its storage")
            at += offset * item_size(dtype)
        return PickledTensor(dtype, shape, Place(file, at, strides))

    def rebuild_typed(
        function: PickledName, kind: PickledName, arguments: tuple[Any, ...], state: Any
    ) -> Any:
        if function.name == WRAPPER:
            wrapped = PickledRecord(kind.name, arguments)
            wrapped.state = state
            return wrapped
        if function.name not in (
            "torch._utils._rebuild_tensor_v2",
            "torch._utils._rebuild_tensor_v3",
        ):
            raise ValueError(f"a tensor made by {function.name}")
        return rebuild(*arguments)

    classes = {**_TORCH, "torch._utils._rebuild_tensor_v2": rebuild, **known}
    classes["torch._utils._rebuild_tensor_v3"] = rebuild
    classes["torch._tensor._rebuild_from_type_v2"] = rebuild_typed
    pickled = archive.read(members["data.pkl"])
    return unpickle(io.BytesIO(pickled), classes, what, storage)


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, whole: io.BufferedReader, start: int, size: int) -> None:
        self._whole, self._start, self._size, self._at = whole, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, self._size)[whence]
        if at < 0:
            raise ValueError("a place before the begin of the file")
        self._at = at
        return at

    def read(self, n: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._whole.seek(self._start + self._at)
        data = self._whole.read(left if n is None or n < 0 else min(n, left))
        self._at += len(data)
        return data


def _first(value: Any, *_: Any) -> Any:
    return value


def size_of(*arguments: Any) -> tuple[int, ...]:
    sizes = tuple(*arguments)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in sizes):
        raise ValueError("a size that is no list of numbers")
    return sizes


_TORCH: dict[str, Callable[..., Any] | None] = {
    "collections.OrderedDict": plain_dict,
    "collections.Counter": plain_dict,
    "collections.defaultdict": plain_dict,
    "builtins.set": None,
    "builtins.bytearray": None,
    "builtins.complex": None,
    "_codecs.encode": None,
    "torch.Size": size_of,
    "torch.Tensor": None,
    WRAPPER: None,
    "torch.device": None,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.storage.UntypedStorage": None,
    "torch.storage.TypedStorage": None,
    "torch.UntypedStorage": None,
    "torch.serialization._get_layout": None,
    "torch.strided": None,
}
_TORCH |= {f"torch.{name}": None for name in (*STORAGES, *DTYPES, *OTHER_DTYPES)}
_TORCH |= {f"torch.storage.{name}": None for name in STORAGES}
