"""Numbers of bytes in words."""

from __future__ import annotations


def size_text(nbytes: int) -> str:
    """In decimal units, e.g. ``4.2 MB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes} B"


def lacking(needed: int, free: int) -> str:
    """``4.2 MB, but only 3.1 MB``: to the byte where both would read alike."""
    texts = size_text(needed), size_text(free)
    if texts[0] == texts[1]:
        texts = f"{needed} bytes", f"{free} bytes"
    return f"{texts[0]}, but only {texts[1]}"
