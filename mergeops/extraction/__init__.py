"""A full fine-tune, or a merge, as a LoRA adapter of its base, and what that leaves out.

Stands on: adapters, architectures, checkpoint, engine, errors, lazy_torch, methods, planning,
progress, recipe, sources.
"""

from mergeops.extraction.adapter_draft import OTHERS, Extracted
from mergeops.extraction.by_uri import extract_by_uri
from mergeops.extraction.extraction import extract
from mergeops.extraction.low_rank import Rank
from mergeops.extraction.merged_adapter import merge_as_adapter

__all__ = ["OTHERS", "Extracted", "Rank", "extract", "extract_by_uri", "merge_as_adapter"]
