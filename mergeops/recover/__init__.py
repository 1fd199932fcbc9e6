"""What a sharded training left behind, put together: FSDP, DeepSpeed ZeRO, slices, verl.

Stands on: checkpoint, errors, progress.
"""

from mergeops.recover.leftover import KINDS, Leftover, leftover
from mergeops.recover.recovery import Recovered, recover
from mergeops.recover.sharded import ShardedModel, ShardedTensor
from mergeops.recover.sharded_reader import ShardedReader

__all__ = [
    "KINDS",
    "Leftover",
    "Recovered",
    "ShardedModel",
    "ShardedReader",
    "ShardedTensor",
    "leftover",
    "recover",
]
