"""One writer at a time on all machines: a lock that the MLflow server itself keeps.

MLflow has no compare-and-set. So who wants to write the model writes a claim first, a tag of the
registered model under a name of its own, and reads all claims then: it holds the lock once its
claim is the only one. Of two who claim at the same moment at least one sees the other's; the one
with the smaller name waits for the other to withdraw. A claim is deleted after use. One whose
owner died is removed by whoever comes next: at once where its process can be seen to be gone, else
when it is older than ``LEASE_S``. That takes the same permission as writing the model does, so no
account is locked out by another's; and tags of registered models start no webhook.

mergeops 0.1 held a registered model of its own instead, ``NAME (mergeops lock)``, which is
respected still, and removed when it is stale, where the account may.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mergeops.errors import TrackingError
from mergeops.store.client import is_denied, is_missing
from mergeops.store.connection import Tracking
from mergeops.store.keys import hidden

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

LEASE_S = 120
"""A change of @champion is a dozen requests; a process that holds the lock longer is gone."""
WAIT_S = 3.0
"""For who claimed at the same moment to withdraw."""
POLL_S = 0.1
CLAIM = hidden("mergeops.lock.")
"""Tag of the registered model, with the claim's own name behind it."""
HOLDER = "mergeops.lock"
"""Tag of mergeops 0.1's lock."""

Claim = Mapping[str, object]


@contextmanager
def lease(tracking: Tracking, what: str, name: str) -> Iterator[Callable[[], None]]:
    """Hold the lock of a registered model for the block.

    Args:
        what: names the work in the error, e.g. ``the champion of skills``.
        name: of the registered model, which is there.

    Yields:
        A check that the lock is still this holder's; it raises TrackingError where another writer
        took it over. Ask it before a step that cannot be taken back.

    Raises:
        TrackingError: another process holds the lock, or the account may not write the model.
    """
    token = uuid.uuid4().hex
    _acquire(tracking, what, name, token)

    def check() -> None:
        if token not in _claims(tracking, name):
            raise TrackingError(
                f"{what} was taken over by another writer, since this one took over {LEASE_S} s; "
                "run the same command again"
            )

    try:
        yield check
    finally:
        # Whatever fails here, the claim is stale and the next writer removes it.
        with suppress(TrackingError):
            _withdraw(tracking, name, token)


def _acquire(tracking: Tracking, what: str, name: str, token: str) -> None:
    _respect_old_lock(tracking, what, name)
    own = {"host": _host(), "pid": os.getpid(), "at": time.time()}
    try:
        # Where an answer is lost MLflow asks again, and the same claim is written twice.
        tracking.client.set_registered_model_tag(name, CLAIM + token, json.dumps(own))
        give_up_at = time.monotonic() + WAIT_S
        while others := _live_claims(tracking, name, token):
            if min(others) < token or time.monotonic() > give_up_at:
                raise _in_use(what, others[min(others)])
            time.sleep(POLL_S)
    except BaseException:
        with suppress(TrackingError):
            _withdraw(tracking, name, token)
        raise


def _live_claims(tracking: Tracking, name: str, own: str) -> dict[str, Claim]:
    """The claims of others; those of the dead are removed."""
    live = {}
    for token, claim in _claims(tracking, name).items():
        if token == own:
            continue
        if _is_stale(claim, claim.get("at")):
            _withdraw(tracking, name, token)
        else:
            live[token] = claim
    return live


def _claims(tracking: Tracking, name: str) -> dict[str, Claim]:
    tags = tracking.client.get_registered_model(name).tags
    return {
        tag.removeprefix(CLAIM): _parsed(text)
        for tag, text in tags.items()
        if tag.startswith(CLAIM)
    }


def _withdraw(tracking: Tracking, name: str, token: str) -> None:
    try:
        tracking.client.delete_registered_model_tag(name, CLAIM + token)
    except TrackingError as error:
        # Another process that saw it stale may have been faster.
        if not is_missing(error):
            raise


def _respect_old_lock(tracking: Tracking, what: str, name: str) -> None:
    lock = f"{name} (mergeops lock)"
    try:
        model: RegisteredModel = tracking.client.get_registered_model(lock)
    except TrackingError as error:
        # With accounts and workspaces MLflow denies what is not there, too.
        if is_missing(error) or is_denied(error):
            return
        raise
    holder = _parsed(model.tags.get(HOLDER, ""))
    if not _is_stale(holder, float(model.creation_timestamp) / 1000):
        raise _in_use(what, holder)
    # Another account's may not be deleted; it holds nobody up.
    with suppress(TrackingError):
        tracking.client.delete_registered_model(lock)


def _in_use(what: str, holder: Claim) -> TrackingError:
    host = str(holder.get("host", "")).split("#")[0]
    who = f" (process {holder['pid']} on {host})" if holder.get("pid") else ""
    return TrackingError(
        f"{what} is being worked on by another mergeops command{who}; wait until it has ended, "
        "then run the same command again"
    )


def _parsed(text: str) -> Claim:
    try:
        claim = json.loads(text)
    except ValueError:
        return {}
    return claim if isinstance(claim, dict) else {}


def _is_stale(claim: Claim, since: object) -> bool:
    """Whether a claim's owner is gone.

    Args:
        since: Unix seconds; a claim that is no number of them was written by nobody here.
    """
    pid = claim.get("pid")
    if claim.get("host") == _host() and isinstance(pid, int) and not _is_alive(pid):
        return True
    if not isinstance(since, int | float):
        return True
    # A clock that is far ahead must not hold the lock for ever.
    return abs(time.time() - since) > LEASE_S


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
