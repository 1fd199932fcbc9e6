"""From logits to what is asked of them: log-probabilities of tokens, and which is the likeliest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_AT_A_TIME = 2**24
"""Logits that are turned to log-probabilities at once."""


def log_softmax(logits: Tensor) -> Tensor:
    """Over the last dimension, in float32 or better."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return functional.log_softmax(logits, dim=-1, dtype=dtype)


def read_tokens(
    logits: Tensor, places: Tensor, wanted: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each wanted token at its place, and whether it is the likeliest.

    Args:
        logits: ``[n, vocabulary]``.
        places: ``[k]`` rows of ``logits``.
        wanted: ``[k]`` token ids.
        dtype: of the softmax; None takes that of the logits.
    """
    scores = torch.empty(len(places), dtype=dtype or logits.dtype)
    greedy = torch.empty(len(places), dtype=torch.bool)
    step = max(1, _AT_A_TIME // logits.shape[1])
    for start in range(0, len(logits), step):
        part = functional.log_softmax(logits[start : start + step], dim=-1, dtype=dtype)
        in_part = (places >= start) & (places < start + step)
        rows = (places[in_part] - start).to(part.device)
        tokens = wanted[in_part].to(part.device)
        scores[in_part] = part[rows, tokens].to("cpu")
        greedy[in_part] = (part.argmax(-1)[rows] == tokens).to("cpu")
    return scores, greedy
