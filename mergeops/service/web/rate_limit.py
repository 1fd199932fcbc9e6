"""How often somebody may ask."""

from __future__ import annotations

import time

MOST_KEYS = 10_000


class RateLimit:
    """A bucket for each key that holds ``per_minute`` and fills again in a minute (token bucket).

    Args:
        per_minute: also how many may come at once.
    """

    def __init__(self, per_minute: int) -> None:
        self._size = float(per_minute)
        self._buckets: dict[str, tuple[float, float]] = {}
        """Level, and when it was that; a key that is not there has a full one."""

    def wait_s(self, key: str) -> float:
        """Seconds until there is one for the key; 0 where there is."""
        return max(0.0, 1.0 - self._level(key)) * 60.0 / self._size

    def take(self, key: str) -> None:
        """Take one out."""
        now = time.monotonic()
        level = max(0.0, self._level(key) - 1.0)
        if len(self._buckets) >= MOST_KEYS:
            full = [k for k in self._buckets if self._level(k) == self._size]
            for old in full or list(self._buckets)[: MOST_KEYS // 2]:
                del self._buckets[old]
        self._buckets[key] = level, now

    def _level(self, key: str) -> float:
        level, at = self._buckets.get(key, (self._size, 0.0))
        return min(self._size, level + (time.monotonic() - at) * self._size / 60.0)
