"""The model that a config.json makes: its parameters, and how a checkpoint's tensors fit them.

Stands on: checkpoint, errors, kernels, lazy_torch, progress.
"""

from mergeops.architectures.gguf_models import converted_gguf
from mergeops.architectures.kept_fits import read_fit, read_settings
from mergeops.architectures.model_fit import ModelFit

__all__ = ["ModelFit", "converted_gguf", "read_fit", "read_settings"]
