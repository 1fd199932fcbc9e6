"""Adapters: what PEFT saves beside a base, read as the model that both are together.

Stands on: checkpoint, errors, schema.
"""

from mergeops.adapters.adapter_config import AdapterConfig, checked, read_adapter_config
from mergeops.adapters.kinds import EXACT, INPUT_DEPENDENT

__all__ = ["EXACT", "INPUT_DEPENDENT", "AdapterConfig", "checked", "read_adapter_config"]
