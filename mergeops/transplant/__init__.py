"""A model with the vocabulary of another.

Stands on: architectures, checkpoint, engine, errors, lazy_torch, planning, progress,
recipe, sources.
"""

from mergeops.transplant.new_rows import METHODS
from mergeops.transplant.of_two_uris import transplant_by_uri
from mergeops.transplant.transplant import Transplant

__all__ = ["METHODS", "Transplant", "transplant_by_uri"]
