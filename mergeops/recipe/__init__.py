"""What a user may write, from Hydra or from mergekit's YAML.

Stands on: errors, methods, schema.
"""

from mergeops.recipe.choices import WORDS, keys, options_of
from mergeops.recipe.composition import compose, expand_sweep
from mergeops.recipe.executor_settings import EXECUTOR_PLUG_INS, ExecutorSpec
from mergeops.recipe.files import GROUPS, PACKAGE, converted_text, is_written
from mergeops.recipe.first_conf import FirstConf, tasks_in, write_first_conf
from mergeops.recipe.merge_uris import MERGE
from mergeops.recipe.mergekit.model_names import ModelName
from mergeops.recipe.mergekit.moe_document import Expert, MixtureSpec, read_mixture
from mergeops.recipe.mergekit.read import read_mergekit
from mergeops.recipe.method_spec import MethodSpec
from mergeops.recipe.packaged import packaged_conf
from mergeops.recipe.recipe import Recipe
from mergeops.recipe.settings import (
    EvaluateSpec,
    HooksSpec,
    OutputSpec,
    PromoteSpec,
    SearchSpec,
    TrackingSpec,
    parse_size,
)
from mergeops.recipe.slices import BASE, Module, Slice, SlicePart
from mergeops.recipe.source_spec import SourceSpec
from mergeops.recipe.tokenizer import TokenizerSpec, TokenSource, TokenSpec
from mergeops.recipe.tool_record import EXTRACT, MOE, TRANSPLANT, ToolSpec
from mergeops.recipe.values import MatchedValue, Setting, choose, interpolate, numbers, plain

__all__ = [
    "BASE",
    "EXECUTOR_PLUG_INS",
    "EXTRACT",
    "GROUPS",
    "MERGE",
    "MOE",
    "PACKAGE",
    "TRANSPLANT",
    "WORDS",
    "EvaluateSpec",
    "ExecutorSpec",
    "Expert",
    "FirstConf",
    "HooksSpec",
    "MatchedValue",
    "MethodSpec",
    "MixtureSpec",
    "ModelName",
    "Module",
    "OutputSpec",
    "PromoteSpec",
    "Recipe",
    "SearchSpec",
    "Setting",
    "Slice",
    "SlicePart",
    "SourceSpec",
    "TokenSource",
    "TokenSpec",
    "TokenizerSpec",
    "ToolSpec",
    "TrackingSpec",
    "choose",
    "compose",
    "converted_text",
    "expand_sweep",
    "interpolate",
    "is_written",
    "keys",
    "numbers",
    "options_of",
    "packaged_conf",
    "parse_size",
    "plain",
    "read_mergekit",
    "read_mixture",
    "tasks_in",
    "write_first_conf",
]
