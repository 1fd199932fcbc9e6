"""Dense models become the experts of one: Mixtral, Qwen2-MoE or Qwen3-MoE.

Stands on: architectures, checkpoint, engine, errors, evaluate, lazy_torch, planning,
progress, recipe, redact, sources.
"""

from mergeops.mixture.by_file import mixture_of
from mergeops.mixture.mixture import Mixture

__all__ = ["Mixture", "mixture_of"]
