"""Where the tensors that an adapter names in memory lie on disk: by transformers, or by endings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mergeops.adapters.task_heads import TrainedHead
from mergeops.architectures import (
    VOCABULARY_SIZES,
    ModelFit,
    expert_matrices,
    read_fit,
    token_rows,
)
from mergeops.checkpoint import Checkpoint
from mergeops.errors import SourceError

HEAD = "lm_head.weight"
HEAD_ENDINGS = ("lm_head.weight", "embed_out.weight", "output_projection.weight")
EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|shared)\.weight$")


@dataclass(frozen=True)
class DiskPiece:
    """The part of a parameter in memory that one tensor on disk is."""

    tensor: str
    """Its name on disk."""
    expert: int | None = None
    """Which matrix of ``[experts, rows, columns]``; None where it is the whole parameter."""
    row: int = 0
    """The row of that matrix at which it begins."""


class BaseNames:
    """The base of an adapter, by the names that its tensors have in memory.

    Args:
        adapter: what messages call the adapter.
        base: the base's headers.
        config: its config.json; empty where it has none.
        trained: what the adapter was trained for.
    """

    def __init__(
        self, adapter: str, base: Checkpoint, config: Mapping[str, Any], trained: TrainedHead
    ) -> None:
        self.config = config
        self._trained = trained
        self._adapter = adapter
        self.base = base
        self.tensors = dict(base.tensors)
        """The base's, with the rows that the adapter gives them, and heads that are no tensors of
        their own, where one was asked for."""
        self._beginnings: set[tuple[str, str]] = set()

    @cached_property
    def fit(self) -> ModelFit | None:
        """What transformers makes of the base; None where it does not know the model."""
        if not self.config:
            return None
        shapes = {name: stored.shape for name, stored in self.base.tensors.items()}
        try:
            return read_fit(self.config, shapes)
        except SourceError:
            return None

    @cached_property
    def tied(self) -> dict[str, str]:
        """Tensor -> the one on disk that it is the same as, e.g. a head and the embeddings; both
        are named as on disk where they are there."""
        if self.fit is not None:
            return self.fit.tied_on_disk()
        found = [name for name in self.base.tensors if EMBEDDINGS.search(name)]
        if self.config.get("tie_word_embeddings") is not True or len(found) != 1:
            return {}
        return {} if HEAD in self.base.tensors else {HEAD: found[0]}

    def is_vocabulary(self, tensor: str) -> bool:
        """Whether a tensor, by its name on disk, has a row for each token."""
        looks = EMBEDDINGS.search(tensor) is not None or tensor.endswith(HEAD_ENDINGS)
        tensors = self.base.tensors
        stored = tensors.get(tensor) or tensors.get(self.tied.get(tensor, tensor))
        if not looks and (
            stored is None or not stored.shape or token_rows(stored.shape) not in self._sizes
        ):
            # What transformers knows is asked only where it may matter: importing it takes seconds.
            return False
        if self.fit is None:
            return looks
        return self._parameters.get(tensor, tensor) in self.fit.vocabulary

    def is_input(self, tensor: str) -> bool:
        """Whether a tensor, by its name on disk, is what the model reads tokens with: PEFT ties
        rows of tokens to the rows of no other."""
        if self.fit is None or not self.fit.embeddings:
            return True
        return self._parameters.get(tensor, tensor) == self.fit.embeddings

    @cached_property
    def _sizes(self) -> set[int]:
        """Of vocabularies, wherever the config has one."""
        parts = [self.config, *(v for v in self.config.values() if isinstance(v, Mapping))]
        return {part["vocab_size"] for part in parts if isinstance(part.get("vocab_size"), int)}

    @cached_property
    def _parameters(self) -> dict[str, str]:
        return {} if self.fit is None else self.fit.in_memory()

    def layer(self, module: str) -> str | None:
        """See ``ModelFit.layers``; None for a linear layer, other modules and unknown models."""
        if self.fit is None:
            return None
        parameter = self.fit.parameter(f"{module}.weight")
        name = module if parameter is None else parameter.removesuffix(".weight")
        kind = self.fit.layers.get(name)
        return None if kind == "linear" else kind

    def has(self, parameter: str) -> bool:
        """Whether the model has a parameter of this name in memory."""
        if self.fit is not None and self.fit.parameter(parameter) is not None:
            return True
        return any(parameter == name or name.endswith(f".{parameter}") for name in self.tensors)

    def is_attention(self, module: str) -> bool:
        """Whether a module is a torch.nn.MultiheadAttention, with its projections in one tensor."""
        return self.has(f"{module}.in_proj_weight") and not self.has(f"{module}.weight")

    def on_disk(self, tensor: str, key: str) -> str:
        """The tensor on disk that is a whole parameter.

        Args:
            tensor: the parameter's name in memory.
            key: what asks for it, for messages.

        Raises:
            SourceError: there is none, or several that it may be, or it is put together of several.
        """
        pieces = self.pieces(tensor, key)
        if len(pieces) > 1 or pieces[0].expert is not None:
            raise SourceError(
                f"{self._adapter}: {key} applies to {tensor}, which {self.base.path} keeps in "
                f"{len(pieces)} tensors ({pieces[0].tensor}, ...); save the base with "
                "save_pretrained(NEW_DIR, save_original_format=False) and set the source's base "
                "to it"
            )
        return pieces[0].tensor

    def pieces(self, tensor: str, key: str) -> Sequence[DiskPiece]:
        """The tensors on disk that make up a parameter.

        Raises:
            SourceError: there are none, or it cannot be said which they are.
        """
        if tensor in self.tensors:
            return [DiskPiece(tensor)]
        tied = [name for name in self.tied if name == tensor or name.endswith(f".{tensor}")]
        if tensor in tied or len(tied) == 1:
            name = tensor if tensor in tied else tied[0]
            if name not in self.tensors:
                self.tensors[name] = replace(self.base.tensors[self.tied[name]], name=name)
            return [DiskPiece(name)]
        fit = self.fit
        parameter = None if fit is None else fit.parameter(tensor)
        if fit is not None and parameter is not None:
            parts = fit.on_disk(parameter)
            if parts and parameter not in fit.converted and len(parts) == 1:
                return [DiskPiece(parts[0])]
            if parts:
                return self._experts(fit, parameter, parts, key)
        return [DiskPiece(self._by_ending(tensor, key))]

    def _by_ending(self, tensor: str, key: str) -> str:
        """The only tensor whose name ends as this one does."""
        found = [
            name
            for name in self.base.tensors
            if name.endswith(f".{tensor}") or tensor.endswith(f".{name}")
        ]
        if len(found) > 1:
            raise SourceError(
                f"{self._adapter}: {key} applies to {tensor}, which may be {found[0]} or "
                f"{found[1]} of {self.base.path}; set the source's base to the very model that "
                "was trained"
            )
        if not found:
            raise SourceError(
                f"{self._adapter}: {key} applies to {tensor}, which {self.base.path} does not "
                f"have{self._hint(tensor)}"
            )
        longer, shorter = (found[0], tensor) if len(found[0]) > len(tensor) else (tensor, found[0])
        beginning = longer.removesuffix(shorter)
        self._beginnings.add(("base" if longer == found[0] else "adapter", beginning))
        if len(self._beginnings) > 1:
            left_out = ", ".join(sorted(beginning for _, beginning in self._beginnings))
            raise SourceError(
                f"{self._adapter}: its modules would be found in {self.base.path} by leaving out "
                f"different beginnings of names ({left_out}); set the source's base to the very "
                "model that was trained"
            )
        return found[0]

    def _hint(self, tensor: str) -> str:
        module = tensor.rpartition(".")[0]
        if tensor.endswith(".weight") and self.is_attention(module):
            return (
                ": it is a torch.nn.MultiheadAttention, on which only plain LoRA is applied; leave "
                "this source out, or train it again with LoRA and without lora_bias"
            )
        shapes = {name: stored.shape for name, stored in self.base.tensors.items()}
        return self._trained.missing(tensor, self.config, shapes)

    def _experts(
        self, fit: ModelFit, parameter: str, parts: Sequence[str], key: str
    ) -> Sequence[DiskPiece]:
        shapes = {part: self.base.tensors[part].shape for part in parts}
        matrices = expert_matrices(fit, parameter, shapes)
        if matrices is None:
            raise SourceError(
                f"{self._adapter}: {key} applies to {parameter}, which transformers makes of "
                f"{len(parts)} tensor(s) of {self.base.path} ({parts[0]}, ...) in a way that "
                "mergeops cannot go back; save the base with save_pretrained(NEW_DIR, "
                "save_original_format=False) and set the source's base to it"
            )
        return [DiskPiece(matrix.tensor, matrix.expert, matrix.row) for matrix in matrices]


def vocabulary_change(config: Mapping[str, Any], before: int, rows: int) -> dict[str, Any]:
    """What config.json says of a vocabulary of another size."""
    text = config.get("text_config")
    if isinstance(text, Mapping) and "vocab_size" in text:
        return {"text_config": {"vocab_size": rows}}
    sizes = {key: rows for key in VOCABULARY_SIZES if config.get(key) == before}
    return sizes or {"vocab_size": rows}
