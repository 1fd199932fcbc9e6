"""What a sharded training left behind, put together: FSDP, DeepSpeed ZeRO, slices, verl.

Stands on: checkpoint, errors, lazy_torch, progress.
"""

from mergeops.recover.finding import (
    INNER_FOLDERS,
    KINDS,
    Leftover,
    is_piece,
    is_sharded,
    kind_of,
    latest_step,
    leftover,
    step_of_name,
    world_size_of,
)
from mergeops.recover.fitting import open_on_base
from mergeops.recover.lora import adapter_settings
from mergeops.recover.megatron import Averaged, average_megatron
from mergeops.recover.recovery import Recovered, recover
from mergeops.recover.sharded import ShardedModel, ShardedTensor
from mergeops.recover.sharded_reader import ShardedReader

__all__ = [
    "INNER_FOLDERS",
    "KINDS",
    "Averaged",
    "Leftover",
    "Recovered",
    "ShardedModel",
    "ShardedReader",
    "ShardedTensor",
    "adapter_settings",
    "average_megatron",
    "is_piece",
    "is_sharded",
    "kind_of",
    "latest_step",
    "leftover",
    "open_on_base",
    "recover",
    "step_of_name",
    "world_size_of",
]
