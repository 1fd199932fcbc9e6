"""Credentials taken out of what is written where others may read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_URI = re.compile(r"\b([A-Za-z][A-Za-z0-9+.\-]*://)([^\s/?#'\"]*@)?([^\s'\"]*)")
_NAME = (
    r"[^=&\s]*(?:token|secret|password|passwd|signature|credential|api_?key|sig)[^=&\s]*"
    r"|[^=&\s]*key"
)
_SECRET = re.compile(rf"([?&;](?:{_NAME})=)[^&\s'\"]*", re.IGNORECASE)


def redact(value: Any) -> Any:
    """The same value with the credentials taken out of every URI in it, at any depth.

    That is what stands before the host, and the values of query parameters with a telling name.
    """
    if isinstance(value, str):
        without_user = _URI.sub(lambda m: m.group(1) + m.group(3), value)
        return _SECRET.sub(r"\1***", without_user)
    if isinstance(value, Mapping):
        return {name: redact(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value


def redacted_line(error: object, limit: int = 300) -> str:
    """An error's text in one line, with the credentials taken out of every URI in it."""
    return " ".join(str(redact(str(error))).split())[:limit]
