"""A full fine-tune as a LoRA adapter of its base: the best one of a rank, and what it leaves out.

Stands on: architectures, checkpoint, engine, errors, lazy_torch, planning, progress, recipe,
sources.
"""

from mergeops.extraction.by_uri import extract_by_uri
from mergeops.extraction.extraction import OTHERS, Extracted, extract
from mergeops.extraction.low_rank import Rank

__all__ = ["OTHERS", "Extracted", "Rank", "extract", "extract_by_uri"]
