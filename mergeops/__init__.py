"""mergeops: merge fine-tuning runs into a better model, scored, tracked and promoted in MLflow."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergeops.sources.callback import MergeReadyCallback

__version__ = "0.1.0"
__all__ = ["MergeReadyCallback", "__version__"]


def __getattr__(name: str) -> object:
    # A training script imports it; nobody else pays for transformers.
    if name == "MergeReadyCallback":
        from mergeops.sources.callback import MergeReadyCallback

        return MergeReadyCallback
    raise AttributeError(f"module 'mergeops' has no attribute {name!r}")
