"""A Hugging Face directory as a model that lm-eval can score.

Heavy imports at the top: imported only when something has to be scored.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from mergeops.errors import ConfigError, EvaluationError
from mergeops.evaluate.catalogue import first_line
from mergeops.settings import EvaluateSpec

log = logging.getLogger(__name__)

# Token lists kept between models of one family; about 200 MB.
_KEPT_TOKENS = 5_000_000
# Parameters up to which one thread is as fast as several.
_SMALL = 20_000_000

Encodings = dict[tuple[str, bool | None], list[int]]


def pick_device(wanted: str) -> torch.device:
    """``evaluate.device`` as a device that is there.

    Raises:
        ConfigError: no device name.
        EvaluationError: no such device here.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"evaluate.device is {wanted!r}; allowed: auto, cpu, cuda, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise EvaluationError(
            f"evaluate.device is {wanted!r}, but this machine has {count} CUDA devices"
        )
    return device


def load_model(
    path: Path, spec: EvaluateSpec, device: torch.device, *, trust_remote_code: bool
) -> Any:
    """A causal language model in eval mode on its device.

    Raises:
        EvaluationError: the directory cannot be loaded, lacks weights, or holds NaN or Inf.
    """
    dtype = spec.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:
        raise EvaluationError(f"model {path} cannot be loaded: {first_line(error)}") from error
    # transformers fills what is missing or misshapen with random numbers and only warns.
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise EvaluationError(
            f"model {path}: {name} has shape {list(stored)}, but its config.json asks for "
            f"{list(wanted)}"
        )
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise EvaluationError(
            f"model {path} lacks {len(lacking)} tensors that its config.json asks for, "
            f"e.g. {lacking[0]}"
        )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise EvaluationError(f"model {path} holds NaN or Inf in {name}; it cannot be scored")
    try:
        return model.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise EvaluationError(
            f"model {path} does not fit into the memory of {device}; try evaluate.dtype=bfloat16"
        ) from error


def load_tokenizer(path: Path, *, trust_remote_code: bool, chat: bool) -> Any:
    """The tokenizer of a directory.

    Args:
        chat: whether a chat template is needed.

    Raises:
        EvaluationError: none there, unreadable, or without a chat template.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise EvaluationError(
            f"the tokenizer in {path} cannot be loaded: {first_line(error)}"
        ) from error
    if chat and not tokenizer.chat_template:
        raise EvaluationError(
            f"evaluate.apply_chat_template is on, but the tokenizer in {path} has no chat template"
        )
    return tokenizer


class ScoringModel(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """lm-eval's own Hugging Face model; checks requests, keeps token lists between models."""

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


def use_threads_for(model: Any) -> int:
    """Give a small model on the CPU one thread; return the thread count to set back afterwards.

    Its operations take microseconds, less than the threads' barrier when another process wants a
    core: five tasks of 200 items on 2 M parameters took 24 s with two threads beside a training
    run, 2 s with one. The same count on every machine also keeps the last digits.
    """
    before = torch.get_num_threads()
    if model.device.type == "cpu" and model.num_parameters() <= _SMALL:
        torch.set_num_threads(1)
    return before


def set_threads(n: int) -> None:
    """Set torch's threads back to what ``use_threads_for`` returned."""
    torch.set_num_threads(n)


def free_memory() -> None:
    """Give back what a dropped model held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
