"""A device and the model that is on it: opened for a checkpoint, or filled with weights poured in.

A model of the same configuration as the one before only gets its weights. A study keeps its seat
for all its merges, which so are never files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mergeops.checkpoint import as_tensor, item_size
from mergeops.errors import EvaluationError
from mergeops.evaluate.identity import model_digest, tokenizer_digest
from mergeops.evaluate.model import (
    Model,
    load_model,
    load_tokenizer,
    not_finite,
    open_vllm,
    places_for,
    replace_weights,
    says_dtype,
)
from mergeops.evaluate.silence import quiet
from mergeops.evaluate.tasks import TaskSet
from mergeops.evaluate.workers import free_memory, use_threads_for
from mergeops.lazy_torch import torch


class Pourable(Protocol):
    """Weights that are no files."""

    @property
    def tensors(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Name -> safetensors dtype and shape of every tensor."""

    def pour(self, take: Callable[[str, int, memoryview], None]) -> str:
        """Give the bytes of all tensors: name, offset, bytes; returns ``weights_sha256``."""


@dataclass(eq=False)
class Seat:
    """One device and the model on it."""

    device: Any
    """That models are put on; None for a backend that takes what it finds."""
    _: KW_ONLY
    trust_remote_code: bool
    """Whether a checkpoint's own code may run."""
    lm: Any = None
    """The lm-eval model, once one is opened."""
    _loaded: tuple[str, str] | None = None
    """Digests of configuration and tokenizer, where the weights can be replaced."""
    _poured: Model | None = None
    """What was poured in last."""
    _threads: int | None = None
    """torch's thread count to set back."""

    def open(self, model: Model, digests: tuple[str, str], tasks: TaskSet) -> None:
        """Have a checkpoint's weights on the device.

        Args:
            digests: of its configuration and its tokenizer.
            tasks: how it will be asked; keeps token lists for all models.

        Raises:
            EvaluationError: it cannot be loaded, or does not fit into memory.
        """
        if model == self._poured:
            return
        spec, path = tasks.spec, model.path
        if spec.backend == "vllm":
            self.close()
            self.lm = open_vllm(path, model.tokenizer_path, spec, self.trust_remote_code)
            return
        self._poured = None
        try:
            if (
                self._loaded == digests
                and (spec.dtype != "auto" or says_dtype(path))
                and replace_weights(self.lm.model, path)
            ):
                return
        except BaseException:
            self.close()
            raise
        self.close()
        # The one late import of a module of our own: see there.
        from mergeops.evaluate.scoring_model import PlainModel, SharingModel

        trust = self.trust_remote_code
        tokenizer = load_tokenizer(
            model.tokenizer_path, trust_remote_code=trust, chat=spec.apply_chat_template
        )
        loaded = load_model(path, spec, self.device, trust_remote_code=trust)
        encodings = tasks.encodings.setdefault(digests[1], {})
        kind = PlainModel if spec.backend == "hf" else SharingModel
        self.lm = kind(loaded, tokenizer, spec, encodings)
        self._loaded = digests
        self._threads = use_threads_for(loaded)

    def fill(
        self, folder: Path, weights: Pourable, tasks: TaskSet, alike: Iterable[Model]
    ) -> Model | None:
        """Pour weights into the model on the device, each number as loading them would round it.

        Args:
            folder: with the configuration and the tokenizer of a checkpoint of these weights.
            weights: every tensor of the checkpoint.
            tasks: how it will be asked.
            alike: checkpoints of which one is opened where no model of this configuration is there.

        Returns:
            The model, to be asked; None where it can be had from files only: the backend is vLLM,
            the configuration does not say the number format, none of the models has the same, or
            its tensors are others than the checkpoint's.

        Raises:
            EvaluationError: a weight does not fit into the model's number format.
            MergeopsError: the weights cannot be made; the seat is empty then.
        """
        spec, trust = tasks.spec, self.trust_remote_code
        if spec.backend == "vllm" or (spec.dtype == "auto" and not says_dtype(folder)):
            return None
        digests = (
            model_digest(folder, trust_remote_code=trust),
            tokenizer_digest(folder, trust_remote_code=trust),
        )
        if self._loaded != digests:
            vessel = next((m for m in alike if self._digests(m) == digests), None)
            if vessel is None:
                return None
            with quiet():
                self.open(vessel, digests, tasks)
        places = places_for(self.lm.model, {n: s for n, (_, s) in weights.tensors.items()})
        if places is None:
            return None
        self._poured = None
        try:
            sha256 = weights.pour(_Filling(places, weights.tensors))
            for name, place in places.items():
                if not torch.isfinite(place).all():
                    raise not_finite(folder, name)
        except BaseException:
            # What is there now is a mixture.
            self.close()
            raise
        self._poured = Model(folder, sha256)
        return self._poured

    def close(self) -> None:
        """Give the device back."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
            self._threads = None
        self._poured = None
        if self.lm is not None:
            self.lm = self._loaded = None
            free_memory()

    def _digests(self, model: Model) -> tuple[str, str] | None:
        trust = self.trust_remote_code
        try:
            return (
                model_digest(model.path, trust_remote_code=trust),
                tokenizer_digest(model.tokenizer_path, trust_remote_code=trust),
            )
        except EvaluationError:
            return None  # an adapter, or a directory without a tokenizer


class _Filling:
    """Takes the bytes of tensors into a model's own."""

    def __init__(
        self, places: Mapping[str, Any], tensors: Mapping[str, tuple[str, Sequence[int]]]
    ) -> None:
        self._places = {name: place.detach().view(-1) for name, place in places.items()}
        self._tensors = tensors

    def __call__(self, name: str, offset: int, data: memoryview) -> None:
        dtype, place = self._tensors[name][0], self._places[name]
        start, count = offset // item_size(dtype), len(data) // item_size(dtype)
        with torch.no_grad():
            stored = as_tensor(np.frombuffer(data, np.uint8), dtype, count)
            place[start : start + count].copy_(stored)
