"""One writer at a time on all machines: a lock that the MLflow server itself keeps.

MLflow has no compare-and-set, but the name of a registered model is unique, and creating one is
atomic: of many who create ``NAME (mergeops lock)`` one succeeds. The lock is deleted after use. One
whose holder died is taken over: at once where its process can be seen to be gone, else when it is
older than ``LEASE_S``.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mergeops.errors import TrackingError
from mergeops.store.client import is_taken, or_none
from mergeops.store.connection import Tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

LEASE_S = 120
"""A change of @champion is a dozen requests; a process that holds the lock longer is gone."""
HOLDER = "mergeops.lock"
ABOUT = "Held by a running mergeops command while it moves an alias; gone in seconds."


@contextmanager
def lease(tracking: Tracking, what: str, name: str) -> Iterator[Callable[[], None]]:
    """Hold the lock of a registered model for the block.

    Args:
        what: names the work in the error, e.g. ``the champion of skills``.
        name: of the registered model.

    Yields:
        A check that the lock is still this holder's; it raises TrackingError where another writer
        took it over. Ask it before a step that cannot be taken back.

    Raises:
        TrackingError: another process holds the lock.
    """
    lock = f"{name} (mergeops lock)"
    token = uuid.uuid4().hex
    _acquire(tracking, what, lock, token)

    def check() -> None:
        model = _find(tracking, lock)
        if model is None or _holder(model).get("token") != token:
            raise TrackingError(
                f"{what} was taken over by another writer, since this one took over {LEASE_S} s; "
                "run the same command again"
            )

    try:
        yield check
    finally:
        # Whatever fails here, the lock is stale and the next writer takes it over.
        with suppress(TrackingError):
            check()
            tracking.client.delete_registered_model(lock)


def _acquire(tracking: Tracking, what: str, lock: str, token: str) -> None:
    holder = {"token": token, "host": _host(), "pid": os.getpid()}
    for _ in range(3):
        try:
            tracking.client.create_registered_model(lock, {HOLDER: json.dumps(holder)}, ABOUT)
            return
        except TrackingError as error:
            if not is_taken(error):
                raise
        model = _find(tracking, lock)
        if model is None:
            continue
        if _holder(model).get("token") == token:
            # The answer to an earlier try was lost, and not what it did.
            return
        if not _is_stale(model):
            break
        with suppress(TrackingError):
            tracking.client.delete_registered_model(lock)
    raise TrackingError(
        f"{what} is being worked on by another mergeops command{_who(model)}; wait until it has "
        "ended, then run the same command again"
    )


def _find(tracking: Tracking, lock: str) -> RegisteredModel | None:
    return or_none(lambda: tracking.client.get_registered_model(lock))


def _holder(model: RegisteredModel | None) -> dict[str, object]:
    try:
        holder = json.loads(model.tags.get(HOLDER, "{}")) if model else {}
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _who(model: RegisteredModel | None) -> str:
    holder = _holder(model)
    host = str(holder.get("host", "")).split("#")[0]
    return f" (process {holder['pid']} on {host})" if holder.get("pid") else ""


def _is_stale(model: RegisteredModel) -> bool:
    holder = _holder(model)
    pid = holder.get("pid")
    if holder.get("host") == _host() and isinstance(pid, int) and not _is_alive(pid):
        return True
    return time.time() - float(model.creation_timestamp) / 1000 > LEASE_S


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        # Another user's process may not be asked, but it is there.
        return not isinstance(error, ProcessLookupError)
    return True


def _host() -> str:
    # Containers may share a host name, and then not their process numbers.
    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}#{namespace}"
