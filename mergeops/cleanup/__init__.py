"""What is on the disk that nobody needs any more.

Stands on: activations, checkpoint, engine, errors, store, tracking.
"""

from mergeops.cleanup.garbage import KeptItem, collect, look, parse_age

__all__ = [
    "KeptItem",
    "collect",
    "look",
    "parse_age",
]
