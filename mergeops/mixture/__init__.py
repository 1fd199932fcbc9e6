"""Dense models become the experts of one: Mixtral, Qwen2-MoE or Qwen3-MoE.

Stands on: architectures, checkpoint, engine, errors, evaluate, lazy_torch, planning,
progress, recipe, redact, sources.
"""

from mergeops.mixture.mixture import Mixture, make_mixture

__all__ = ["Mixture", "make_mixture"]
