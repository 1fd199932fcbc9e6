"""Where this user's machine keeps what was made once for all merges."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """``$XDG_CACHE_HOME/mergeops/NAME``, by default below ``~/.cache``; it need not exist."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    except RuntimeError:
        # A user without a home. Nothing can be read or written below this.
        root = Path(os.devnull)
    return root / "mergeops" / name
