"""A model's family tree, back to its training runs and bases.

Stands on: checkpoint, errors, redact, report, scores, store, tracking.
"""

from mergeops.lineage.ancestors import find_family
from mergeops.lineage.family import Member, short_weight
from mergeops.lineage.picture import write_picture

__all__ = ["Family", "Member", "find_family", "short_weight", "write_picture"]
