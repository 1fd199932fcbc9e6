"""Who asks: the holder of the server's token, or an account of the MLflow server."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergeops.service.operator_config import EVERYBODY, ROLES
from mergeops.store import account_of

FRESH_S = 60.0
"""How long an answer of MLflow's holds: an account that is closed gets in no longer than that."""
MOST_KEPT = 1000


@dataclass(frozen=True)
class Caller:
    """Who asks, and what he may."""

    name: str
    roles: frozenset[str]


class Accounts:
    """Asks the MLflow server for the owner of a name and a password, and keeps neither.

    Args:
        uri: of the MLflow server.
        roles: role -> accounts that have it; ``*`` stands for every account. An administrator of
            the MLflow server has all.
        timeout_s: of one answer.
    """

    def __init__(self, uri: str, roles: Mapping[str, Sequence[str]], timeout_s: int) -> None:
        self._uri = uri
        self._roles = roles
        self._timeout_s = timeout_s
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, tuple[float, Caller]] = {}

    async def caller(self, credentials: str) -> Caller | None:
        """Who asks, by what follows ``Basic`` in the header; None where MLflow knows no such one.

        Raises:
            TrackingError: MLflow does not answer.
        """
        named = _name_and_password(credentials)
        if named is None:
            return None
        # What is kept cannot be read back: the key is this process's own.
        digest = hmac.digest(self._key, credentials.encode(), "sha256")
        kept = self._known.get(digest)
        if kept is not None and time.monotonic() - kept[0] < FRESH_S:
            return kept[1]
        self._known.pop(digest, None)
        account = await asyncio.to_thread(account_of, self._uri, *named, self._timeout_s)
        if account is None:
            return None
        name, is_admin = account
        caller = Caller(name, frozenset(r for r in ROLES if is_admin or self._has(name, r)))
        if len(self._known) >= MOST_KEPT:
            self._known.clear()
        self._known[digest] = time.monotonic(), caller
        return caller

    def _has(self, name: str, role: str) -> bool:
        named = self._roles.get(role, ())
        return name in named or EVERYBODY in named


def _name_and_password(credentials: str) -> tuple[str, str] | None:
    """RFC 7617: base64 of name, colon and password in UTF-8."""
    try:
        text = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    name, colon, password = text.partition(":")
    return (name, password) if colon and name and password else None
