"""The lm-eval models that mergeops scores with: their requests are checked.

Their base classes are lm-eval's, which takes seconds to import: so this module alone of the package
is imported late, by ``asking`` when it first loads a model.
"""

from __future__ import annotations

import logging
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from mergeops.errors import EvaluationError
from mergeops.evaluate.lm import TreeLM
from mergeops.recipe import EvaluateSpec

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
            think_end_token=spec.think_end_token,
            enable_thinking=spec.enable_thinking,
            chat_template_args=dict(spec.chat_template_args),
        )
        self.asking = ""
        """The task being asked, for messages."""
        self._cut: dict[str, tuple[int, int]] = {}
        """Task -> its requests that lost their beginning, and all."""
        self._silent: set[str] = set()
        """Tasks whose system prompt the chat template leaves out."""
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
        key = (string, add_special_tokens)
        is_plain = not left_truncate_len and not options
        if is_plain and key in self._encodings:
            return self._encodings[key]
        encoded: list[int] = super().tok_encode(
            string, add_special_tokens, left_truncate_len, **options
        )
        if is_plain and self._room >= len(encoded):
            self._room -= len(encoded)
            self._encodings[key] = encoded
        return encoded

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """As lm-eval's, which leaves the system's turn out where the template takes none; that is
        said once a task, as it is of a template that passes over it."""
        text: str = super().apply_chat_template(chat_history, add_generation_prompt)
        said = [turn["content"].strip() for turn in chat_history if turn["role"] == "system"]
        if self.asking not in self._silent and any(part not in text for part in said):
            self._silent.add(self.asking)
            log.warning(
                "task %s: the model's chat template has no place for a system prompt, so its "
                "description and evaluate.system_instruction are left out, as in lm-eval",
                self.asking,
            )
        return text

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
                raise EvaluationError(
                    f"task {self.asking}: an answer is empty once tokenised; where it runs into "
                    "the prompt's last word, begin it with a space (doc_to_target of a "
                    "loglikelihood task, target_delimiter of others)"
                )
            if len(continuation) > self.max_length:
                raise EvaluationError(
                    f"task {self.asking}: an answer of {len(continuation)} tokens is longer than "
                    f"max_length {self.max_length}; set a larger evaluate.max_length where the "
                    "model can read it, or shorten the answer"
                )
            if max(max(context, default=0), max(continuation)) >= rows:
                raise EvaluationError(
                    f"task {self.asking}: the tokenizer gives ids beyond the model's {rows} "
                    "embedding rows; it belongs to another model"
                )
            cut += len(context) + len(continuation) > self.max_length + 1
        self._count_cut(cut, len(requests))

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """As lm-eval's; what it would assert, or hide a warning of, is found before."""
        cut = 0
        for request in requests:
            context, settings = request.args
            most = normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"]
            room = self.max_length - most
            tokens = len(self.tok_encode(context))
            if room <= 0:
                raise EvaluationError(
                    f"task {self.asking}: an answer of up to {most} tokens leaves no room for a "
                    f"prompt in max_length {self.max_length}; set a smaller max_gen_toks in "
                    "evaluate.gen_kwargs or in the generation_kwargs of the task's file, or a "
                    "larger evaluate.max_length where the model can read it"
                )
            if most < 1:
                raise EvaluationError(
                    f"task {self.asking}: max_gen_toks is {most}; it takes a positive number"
                )
            if tokens == 0:
                raise EvaluationError(
                    f"task {self.asking}, item {request.doc_id}: the prompt is empty once "
                    "tokenised, so there is nothing to generate from"
                )
            cut += tokens > room
        self._count_cut(cut, len(requests))
        return super().generate_until(requests, disable_tqdm=True)

    def _count_cut(self, cut: int, requests: int) -> None:
        cut_before, before = self._cut.get(self.asking, (0, 0))
        self._cut[self.asking] = cut_before + cut, before + requests

    def tell_of_cut(self) -> None:
        """Warn once of the task being asked, when all its requests were."""
        cut, requests = self._cut.pop(self.asking, (0, 0))
        if cut:
            log.warning(
                "task %s: %d of %d requests are longer than max_length %d and lose their beginning",
                self.asking,
                cut,
                requests,
                self.max_length,
            )


class SharingModel(_Checked, TreeLM):
    """Computes what requests have in common once."""


class PlainModel(_Checked):
    """lm-eval's own Hugging Face model, to the last digit."""
