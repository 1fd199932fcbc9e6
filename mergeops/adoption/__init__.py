"""Training runs become ingredients: found in MLflow after the fact, or marked while they train.

Stands on: adapters, checkpoint, errors, recipe, recover, redact, sources, store.
"""

from mergeops.adoption.adoption import Adoption, adopt
from mergeops.adoption.facts import last_sign_ms
from mergeops.adoption.found import FoundRun
from mergeops.adoption.recipe_file import source_names, write_recipe, write_window

__all__ = [
    "Adoption",
    "FoundRun",
    "adopt",
    "last_sign_ms",
    "source_names",
    "write_recipe",
    "write_window",
]
