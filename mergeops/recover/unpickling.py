"""Pickles of a checkpoint, read by an unpickler that knows the few classes such a file names.

Whatever a pickle names becomes no more than the record of its arguments: no class of torch or of a
trainer is made, and no function of theirs is called. A class that is not in the list is refused by
its name (https://docs.python.org/3/library/pickle.html#restricting-globals).
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable, Mapping
from typing import IO, Any

from mergeops.errors import SourceError

NAME = re.compile(r"[A-Za-z0-9_.<>]{1,120}")
BROKEN = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
"""What Python's unpickler raises on bytes that are no pickle, or that do what none would do."""


class PickledRecord:
    """An object of a pickle: its class's name, what it was made of, and its state."""

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None

    def field(self, name: str) -> Any:
        """An attribute that the state has, else None."""
        # Objects with slots have two states.
        for state in self.state if isinstance(self.state, tuple) else (self.state,):
            if isinstance(state, dict) and name in state:
                return state[name]
        return None


class PickledName:
    """A class or function that a pickle names, and that is never called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PickledName) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


def unpickle(
    stream: IO[bytes],
    known: Mapping[str, Callable[..., Any] | None],
    what: str,
    storage: Callable[[Any], Any] | None = None,
) -> Any:
    """Read a pickle whose classes are all known.

    Args:
        stream: the pickle.
        known: full name of a class or function -> what is called in its place; None keeps a
            ``PickledRecord``.
        what: the file, as messages name it.
        storage: is given the persistent ids, by which torch names the storage of a tensor.

    Raises:
        SourceError: it names something else, or is no whole pickle.
    """
    reader = _Unpickler(stream, known, what, storage)
    try:
        return reader.load()
    except SourceError:
        raise
    except BROKEN as error:
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise SourceError(
            f"{what} is no whole pickle of a checkpoint ({why}): it was cut or damaged; use an "
            "earlier checkpoint of the run"
        ) from error


def plain_dict(*arguments: Any) -> dict[Any, Any]:
    """Stands for the kinds of dict that torch writes, whose items follow."""
    return dict(arguments[0]) if arguments and isinstance(arguments[0], dict) else {}


def _check_key(key: Any) -> None:
    """Refuse what a hash would not come to an end of: tuples of tuples, each twice in the next."""
    parts = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(part, str | int | float | PickledRecord | None) for part in parts):
        raise pickle.UnpicklingError("a key that no checkpoint has")


# Python's own, not the one in C: that one makes room for whatever number of objects a damaged file
# claims to have.
_PYTHONS: Any = pickle._Unpickler


class _Unpickler(_PYTHONS):  # type: ignore[misc]
    def __init__(
        self,
        stream: IO[bytes],
        known: Mapping[str, Callable[..., Any] | None],
        what: str,
        storage: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(stream)
        self._known = known
        self._what = what
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self._known:
            shown = full if NAME.fullmatch(full) else repr(full[:120])
            raise SourceError(
                f"{self._what} names {shown}, which is no part of such a checkpoint and is never "
                "unpickled; trust only files of your own training"
            )
        return PickledName(full)

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise pickle.UnpicklingError("a storage where none belongs")
        return self._storage(pid)

    def _call(self, named: Any, arguments: Any) -> Any:
        if not isinstance(named, PickledName) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of what is no class")
        function = self._known[named.name]
        if function is None:
            return PickledRecord(named.name, arguments)
        return function(*arguments)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def load_newobj(self) -> None:
        self.load_reduce()

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    def load_build(self) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if isinstance(made, PickledRecord):
            made.state = state

    def load_setitem(self) -> None:
        _check_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        super().load_setitems()

    def load_dict(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        super().load_dict()

    def load_refused(self) -> None:
        raise pickle.UnpicklingError("an instruction that no checkpoint has")

    dispatch = {  # noqa: RUF012
        **_PYTHONS.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.EMPTY_SET[0]: load_refused,
        pickle.ADDITEMS[0]: load_refused,
        pickle.FROZENSET[0]: load_refused,
        pickle.INST[0]: load_refused,
        pickle.OBJ[0]: load_refused,
        pickle.EXT1[0]: load_refused,
        pickle.EXT2[0]: load_refused,
        pickle.EXT4[0]: load_refused,
    }
