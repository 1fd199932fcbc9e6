"""The model that a config.json makes: its parameters, and how a checkpoint's tensors fit them.

Stands on: checkpoint, errors, kernels.
"""

from mergeops.architectures.kept_fits import read_fit, read_settings
from mergeops.architectures.model_fit import ModelFit

__all__ = ["ModelFit", "read_fit", "read_settings"]
