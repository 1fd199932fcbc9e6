"""Will these merge, and how do their task vectors interfere: what a look at the weights can tell.

fit             which sources differ from the first, and whether the recipe can be planned
moments         sums over a tensor's entries that all statistics are made from
effective_rank  of a task vector's matrices
walk            one pass over all weights, a few rows of each source at a time

Stands on: checkpoint, engine, errors, lazy_torch, planning, recipe, report, sources.
"""

from mergeops.inspection.heat_maps import figures, save_figures
from mergeops.inspection.inspection import Inspection, Layer, check_recipe, inspect

__all__ = [
    "Inspection",
    "Layer",
    "check_recipe",
    "figures",
    "inspect",
    "save_figures",
]
