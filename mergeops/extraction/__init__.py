"""A full fine-tune, or a merge, as a LoRA adapter of its base, and what that leaves out.

Stands on: adapters, architectures, checkpoint, engine, errors, lazy_torch, methods, planning,
progress, recipe, sources.
"""

from mergeops.extraction.adapter_draft import OTHERS, Extracted
from mergeops.extraction.extraction import extract
from mergeops.extraction.low_rank import Rank
from mergeops.extraction.merged_adapter import (
    adapter_digest,
    base_of_adapter,
    check_low_rank,
    check_made_here,
    merge_as_adapter,
)

__all__ = [
    "OTHERS",
    "Extracted",
    "Rank",
    "adapter_digest",
    "base_of_adapter",
    "check_low_rank",
    "check_made_here",
    "extract",
    "merge_as_adapter",
]
