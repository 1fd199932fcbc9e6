"""A model with the vocabulary of another.

Stands on: architectures, checkpoint, engine, errors, lazy_torch, planning, progress, sources.
"""

from mergeops.transplant.new_rows import METHODS
from mergeops.transplant.transplant import Transplant, make_transplant

__all__ = ["METHODS", "Transplant", "make_transplant"]
