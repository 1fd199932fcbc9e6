"""What a user may write, from Hydra or from mergekit's YAML.

Stands on: errors, methods, schema.
"""

from mergeops.recipe.composition import compose, expand_sweep
from mergeops.recipe.files import PACKAGE, converted_text
from mergeops.recipe.merge_uris import MERGE
from mergeops.recipe.mergekit.read import read_mergekit
from mergeops.recipe.recipe import MethodSpec, Recipe, SourceSpec
from mergeops.recipe.settings import (
    EvaluateSpec,
    HooksSpec,
    OutputSpec,
    PromoteSpec,
    TrackingSpec,
    parse_size,
)
from mergeops.recipe.slices import BASE, Module, Slice, SlicePart
from mergeops.recipe.tokenizer import TokenizerSpec, TokenSource, TokenSpec
from mergeops.recipe.values import MatchedValue, Setting, choose, interpolate, numbers, plain

__all__ = [
    "BASE",
    "MERGE",
    "PACKAGE",
    "EvaluateSpec",
    "HooksSpec",
    "MatchedValue",
    "MethodSpec",
    "Module",
    "OutputSpec",
    "PromoteSpec",
    "Recipe",
    "Setting",
    "Slice",
    "SlicePart",
    "SourceSpec",
    "TokenSource",
    "TokenSpec",
    "TokenizerSpec",
    "TrackingSpec",
    "choose",
    "compose",
    "converted_text",
    "expand_sweep",
    "interpolate",
    "numbers",
    "parse_size",
    "plain",
    "read_mergekit",
]
