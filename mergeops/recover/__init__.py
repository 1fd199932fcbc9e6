"""What a sharded training left behind, put together: FSDP, DeepSpeed ZeRO, slices, verl.

Stands on: checkpoint, errors, progress.
"""

from mergeops.recover.finding import KINDS, Leftover, is_sharded, leftover
from mergeops.recover.fitting import open_on_base
from mergeops.recover.recovery import Recovered, recover
from mergeops.recover.sharded import ShardedModel, ShardedTensor
from mergeops.recover.sharded_reader import ShardedReader
from mergeops.recover.writing import Destination

__all__ = [
    "KINDS",
    "Destination",
    "Leftover",
    "Recovered",
    "ShardedModel",
    "ShardedReader",
    "ShardedTensor",
    "is_sharded",
    "leftover",
    "open_on_base",
    "recover",
]
