"""lm-eval's own vLLM model, for those who have vLLM: ``pip install mergeops[vllm]``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate.catalogue import first_line
from mergeops.settings import EvaluateSpec


def check_installed() -> None:
    """Say so before anything else is done, where vLLM is missing.

    Raises:
        EvaluationError: vLLM cannot be imported here.
    """
    if importlib.util.find_spec("vllm") is None:
        raise EvaluationError(
            "evaluate.backend is vllm, but vLLM is not installed here; pip install "
            "'mergeops[vllm]', or set evaluate.backend=auto"
        )


def open_vllm(path: Path, tokenizer: Path, spec: EvaluateSpec, trust_remote_code: bool) -> Any:
    """A checkpoint in vLLM, as lm-eval asks it.

    Raises:
        EvaluationError: vLLM cannot serve it.
    """
    from lm_eval.models.vllm_causallms import VLLM

    try:
        return VLLM(
            pretrained=str(path),
            tokenizer=str(tokenizer),
            dtype=spec.dtype,
            batch_size=spec.batch_size,
            max_model_len=spec.max_length,
            seed=spec.seed,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:
        raise EvaluationError(f"vLLM cannot load {path}: {first_line(error)}") from error
