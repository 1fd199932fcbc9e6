"""Checkpoints on disk: Hugging Face directories of safetensors files, read by byte ranges."""

from mergeops.checkpoint.digest import adapter_sha256, file_sha256, weights_sha256
from mergeops.checkpoint.layout import Checkpoint, open_checkpoint

__all__ = [
    "Checkpoint",
    "adapter_sha256",
    "file_sha256",
    "open_checkpoint",
    "weights_sha256",
]
