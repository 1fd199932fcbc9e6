"""A database that is away is waited for, by every process that begins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mergeops.errors import ConfigError, ServiceError
from mergeops.redact import redact

PATIENCE_S = 600.0
"""How long a process that starts waits for a database that is away."""
ASK_AGAIN_S = 1.0
WRONG = ("authentication failed", "does not exist", "no pg_hba.conf entry", "invalid")
"""In the answer to a URI that is wrong: waiting changes nothing."""


async def reach(
    database: str, *, patience_s: float = PATIENCE_S, say: Callable[[str], None]
) -> None:
    """Wait until the database lets somebody in.

    Args:
        database: postgresql://...
        patience_s: how long.
        say: is told that it is waited for, and that it is back.

    Raises:
        ConfigError: a package of the service is missing.
        ServiceError: it refuses, or is away for too long.
    """
    try:
        from psycopg import AsyncConnection, Error, OperationalError
    except ImportError as error:
        raise not_installed(error) from error

    began, is_said = time.monotonic(), False
    while True:
        try:
            connection = await AsyncConnection.connect(database, connect_timeout=5)
        except Error as error:
            is_away = isinstance(error, OperationalError) and not any(
                sign in str(error) for sign in WRONG
            )
            if not is_away or time.monotonic() - began >= patience_s:
                raise unusable(database, error) from error
            if not is_said:
                say(f"{unusable(database, error)}; waiting for it, at most {patience_s:.0f} s")
                is_said = True
            await asyncio.sleep(ASK_AGAIN_S)
        else:
            await connection.close()
            if is_said:
                say(f"the database is back after {time.monotonic() - began:.0f} s")
            return


def not_installed(error: ImportError) -> ConfigError:
    """The error of a package that is missing."""
    return ConfigError(
        f"the service needs `pip install 'mergeops[service]'`: {error.name} is missing"
    )


def unusable(database: str, error: Exception) -> ServiceError:
    """The error of a database that cannot be used, without its password."""
    reason = " ".join(str(error).split())
    return ServiceError(f"{redact(database)} cannot be used: {redact(reason)}")
