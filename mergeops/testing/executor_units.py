"""Work for the contract of executors: what a unit may do, and what may happen to it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeops.errors import MergeError
from mergeops.executors import Desk


def double(payload: Mapping[str, Any], place: Desk) -> dict[str, Any]:
    """Twice ``i``, after ``seconds``; told on the way."""
    place.tell(0, 2)
    time.sleep(payload.get("seconds", 0))
    place.tell(2, 2)
    return {"twice": 2 * payload["i"]}


def where(payload: Mapping[str, Any], place: Desk) -> dict[str, Any]:
    """The process, and the units before this one that it remembers."""
    place.kept["units"] = place.kept.get("units", 0) + 1
    time.sleep(payload.get("seconds", 0))
    return {"pid": os.getpid(), "units": place.kept["units"], "number": place.number}


def refuse(payload: Mapping[str, Any], place: Desk) -> None:
    """An error of ours, as the engine raises it."""
    raise MergeError(f"{payload['why']} cannot be merged", at="sources.a")


def break_down(payload: Mapping[str, Any], place: Desk) -> None:
    """An error of nobody's."""
    raise ZeroDivisionError(payload["why"])


def die_once(payload: Mapping[str, Any], place: Desk) -> dict[str, Any]:
    """Killed the first time, as by the system when memory is short; done the second."""
    mark = Path(payload["mark"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"done": True}


def die(payload: Mapping[str, Any], place: Desk) -> None:
    """Killed each time, and counted."""
    with open(payload["mark"], "a", encoding="utf-8") as mark:
        mark.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def hold_memory(payload: Mapping[str, Any], place: Desk) -> None:
    """Holds bytes for some seconds."""
    held = bytearray(payload["nbytes"])
    for i in range(0, len(held), 4096):
        held[i] = 1
    time.sleep(payload["seconds"])
