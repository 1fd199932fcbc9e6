"""Scores of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mergeops.evaluate.harness import score_all
from mergeops.evaluate.model import Model
from mergeops.recipe.settings import EvaluateSpec
from mergeops.scores import Scores


def score(
    path: Path,
    weights_sha256: str,
    spec: EvaluateSpec,
    part: str,
    *,
    tokenizer: Path | None = None,
    **options: Any,
) -> Scores:
    """See ``score_all``."""
    [scores] = score_all([Model(path, weights_sha256, tokenizer)], spec, part, **options)
    return scores
