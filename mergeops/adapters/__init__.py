"""Adapters: what PEFT saves beside a base, read as the model that both are together.

Stands on: architectures, checkpoint, errors, kernels, lazy_torch, schema.
"""

from mergeops.adapters.adapter import Adapter, open_adapter
from mergeops.adapters.adapter_config import (
    AdapterConfig,
    checked,
    in_full_precision,
    read_adapter_config,
)
from mergeops.adapters.adapter_reader import AdapterReader
from mergeops.adapters.kinds import EXACT, INPUT_DEPENDENT
from mergeops.adapters.task_heads import LABEL_HEADS
from mergeops.adapters.weight_changes import LowRank

__all__ = [
    "EXACT",
    "INPUT_DEPENDENT",
    "LABEL_HEADS",
    "Adapter",
    "AdapterConfig",
    "AdapterReader",
    "LowRank",
    "checked",
    "in_full_precision",
    "open_adapter",
    "read_adapter_config",
]
