"""From a recipe and headers to a plan, or a refusal; no tensor is read.

Stands on: activations, adapters, architectures, checkpoint, errors, methods, recipe, recover,
schema, sources.
"""

from mergeops.planning.alignment import read_inputs
from mergeops.planning.architecture import is_before_layers, layer_depths, layer_of
from mergeops.planning.companions import find_companions, result_config, write_companions
from mergeops.planning.inputs import PlannedInput, config_of
from mergeops.planning.measured_sources import disk_name
from mergeops.planning.merges_first import (
    Digests,
    dir_of_digest,
    merge_dir,
    resolve_with_merges,
)
from mergeops.planning.plan import (
    Plan,
    Shard,
    TensorPart,
    TensorTask,
    cut_into_shards,
    write_small_files,
)
from mergeops.planning.planner import make_plan
from mergeops.planning.preflight import check_configs, check_tensors, check_tokenizers
from mergeops.planning.result_check import check_result
from mergeops.planning.tokens.vocabulary import (
    Vocabulary,
    embedding_tensors,
    has_vocabulary,
    names_token_rows,
    read_vocabulary,
)
from mergeops.planning.tokens.vocabulary_layout import VocabularyLayout

__all__ = [
    "Digests",
    "Plan",
    "PlannedInput",
    "Shard",
    "TensorPart",
    "TensorTask",
    "Vocabulary",
    "VocabularyLayout",
    "check_configs",
    "check_result",
    "check_tensors",
    "check_tokenizers",
    "config_of",
    "cut_into_shards",
    "dir_of_digest",
    "disk_name",
    "embedding_tensors",
    "find_companions",
    "has_vocabulary",
    "is_before_layers",
    "layer_depths",
    "layer_of",
    "make_plan",
    "merge_dir",
    "names_token_rows",
    "read_inputs",
    "read_vocabulary",
    "resolve_with_merges",
    "result_config",
    "write_companions",
    "write_small_files",
]
