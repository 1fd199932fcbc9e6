"""The lm-eval models that mergeops scores with: their requests are checked, their answers counted.

Heavy imports at the top: imported only when something has to be scored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from mergeops.errors import EvaluationError
from mergeops.evaluate.lm import TreeLM
from mergeops.settings import EvaluateSpec

log = logging.getLogger(__name__)

# Token lists kept between models of one family; about 200 MB.
_KEPT_TOKENS = 5_000_000

Encodings = dict[tuple[str, bool | None], list[int]]


class _Checked(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """Checks requests, and keeps token lists between models."""

    def __init__(
        self, model: Any, tokenizer: Any, spec: EvaluateSpec, encodings: Encodings
    ) -> None:
        super().__init__(
            pretrained=model,
            backend="causal",
            tokenizer=tokenizer,
            batch_size=spec.batch_size,
            max_length=spec.max_length,
        )
        self.asking = ""
        """The task being asked, for messages."""
        self._encodings = encodings
        self._room = _KEPT_TOKENS - sum(map(len, encodings.values()))

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **options: Any,
    ) -> list[int]:
        """As lm-eval's, each text once for all models with this tokenizer."""
        if left_truncate_len or options:
            encoded: list[int] = super().tok_encode(
                string, add_special_tokens, left_truncate_len, **options
            )
            return encoded
        key = (string, add_special_tokens)
        if (known := self._encodings.get(key)) is not None:
            return known
        encoded = super().tok_encode(string, add_special_tokens)
        if self._room >= len(encoded):
            self._room -= len(encoded)
            self._encodings[key] = encoded
        return encoded

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> Any:
        self._check(requests)
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _check(self, requests: Any) -> None:
        rows = self.model.get_input_embeddings().num_embeddings
        cut = 0
        for _, context, continuation in requests:
            if not continuation:
                raise EvaluationError(f"task {self.asking}: an answer is empty once tokenised")
            if len(continuation) > self.max_length:
                raise EvaluationError(
                    f"task {self.asking}: an answer of {len(continuation)} tokens is longer than "
                    f"max_length {self.max_length}"
                )
            if max(max(context, default=0), max(continuation)) >= rows:
                raise EvaluationError(
                    f"task {self.asking}: the tokenizer gives ids beyond the model's {rows} "
                    "embedding rows; it belongs to another model"
                )
            cut += len(context) + len(continuation) > self.max_length + 1
        if cut:
            log.warning(
                "task %s: %d of %d requests are longer than max_length %d and lose their beginning",
                self.asking,
                cut,
                len(requests),
                self.max_length,
            )


class SharingModel(_Checked, TreeLM):
    """Computes what requests have in common once."""


class PlainModel(_Checked):
    """lm-eval's own Hugging Face model, to the last digit."""


class Ticker(CacheHook):  # type: ignore[misc]
    """lm-eval reports each answer to its cache hook as it arrives: a progress bar's tick."""

    def __init__(self, tick: Callable[[int], None]) -> None:
        super().__init__(None)
        self._tick = tick
        self._answered = 0

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """Count one answer; nothing is cached."""
        self._answered += 1
        self._tick(self._answered)
