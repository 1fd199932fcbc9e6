"""The model that a config.json makes: its parameters, and how a checkpoint's tensors fit them.

Stands on: checkpoint, errors, kernels, lazy_torch, progress.
"""

from mergeops.architectures.gguf_models import converted_gguf
from mergeops.architectures.joined_experts import ONE_EXPERT, cut_into_experts, expert_matrices
from mergeops.architectures.kept_fits import (
    read_fit,
    read_original,
    read_settings,
    tied_setting,
)
from mergeops.architectures.model_fit import (
    VOCABULARY_SIZES,
    ModelFit,
    token_rows,
    with_token_rows,
)
from mergeops.architectures.transformers_models import in_silence

__all__ = [
    "ONE_EXPERT",
    "VOCABULARY_SIZES",
    "ModelFit",
    "converted_gguf",
    "cut_into_experts",
    "expert_matrices",
    "in_silence",
    "read_fit",
    "read_original",
    "read_settings",
    "tied_setting",
    "token_rows",
    "with_token_rows",
]
