"""Training runs become ingredients: found in MLflow after the fact, or marked while they train.

Stands on: adapters, checkpoint, errors, recipe, recover, redact, sources, store.
"""

from mergeops.adoption.adoption import Adoption, adopt
from mergeops.adoption.recipe_file import write_recipe, write_window

__all__ = [
    "Adoption",
    "adopt",
    "write_recipe",
    "write_window",
]
