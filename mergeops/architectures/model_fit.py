"""Fit: how the tensors of a checkpoint and the model that its config.json makes go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Shape = tuple[int, ...]

VOCABULARY_SIZES = ("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input")
"""What config.json calls the size of a vocabulary: that of Marian's decoder, and that of the
embeddings that Gemma 3n has for each layer, too."""
EXPERTS_JOINED = (("MergeModulelist",), ("MergeModulelist", "Concatenate"))
"""What transformers does to experts that lie one by one on disk: ``ModelFit.operations``."""


def token_rows(shape: Shape) -> int:
    """How many tokens a tensor with a row for each of them has; BART's ``final_logits_bias`` is
    ``[1, tokens]``."""
    return shape[1] if len(shape) == 2 and shape[0] == 1 else shape[0]


def with_token_rows(shape: Shape, rows: int) -> Shape:
    """The shape that such a tensor has with another number of tokens."""
    return (1, rows) if len(shape) == 2 and shape[0] == 1 else (rows, *shape[1:])


@dataclass(frozen=True, kw_only=True)
class ModelFit:
    """What loads where, as transformers itself says; parameters include persistent buffers."""

    model_class: str
    """The class of transformers that config.json names, or that it is for."""
    parameters: Mapping[str, Shape]
    """Name in memory -> shape of everything that a checkpoint of the model holds."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Parameter -> the one that it is the same tensor as."""
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameter -> the tensors on disk that it is made of, in the order in which they are put
    together, e.g. one for each expert."""
    converted: frozenset[str] = frozenset()
    """Parameters that loading splits, joins or turns, and does not only rename."""
    operations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameter of ``converted`` -> what is done to its parts, by transformers' names."""
    vocabulary: frozenset[str] = frozenset()
    """Parameters with a row for each token: embeddings, head and its bias; see ``token_rows``."""
    embeddings: str = ""
    """The parameter that transformers calls the input embeddings; empty where there is none."""
    layers: Mapping[str, str] = field(default_factory=dict)
    """Module -> embedding, linear, conv1d (its weight is [inputs, outputs]) or transposed_experts
    (theirs are [experts, inputs, outputs])."""
    missing: tuple[str, ...] = ()
    """Parameters that no tensor gives: random after loading."""
    unexpected: tuple[str, ...] = ()
    """Tensors on disk that the model has no place for, and whose class does not expect that."""
    mismatched: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    """Parameter -> its shape as the checkpoint gives it, and as the model has it."""
    doubled: tuple[str, ...] = ()
    """Parameters that tensors of two names, or of two layouts, give."""
    trouble: str = ""
    """What transformers says where it cannot convert the tensors into parameters."""

    @property
    def is_whole(self) -> bool:
        """Whether all parameters are loaded, each once, and all tensors have a place."""
        wrong = (self.missing, self.unexpected, self.mismatched, self.doubled, self.trouble)
        return not any(wrong)

    def parameter(self, name: str) -> str | None:
        """The parameter of this name, or the only one that ends with it: a model that was trained
        without its head, or outside its wrapper, has names without the beginning."""
        if name in self.parameters:
            return name
        ending = [parameter for parameter in self.parameters if parameter.endswith(f".{name}")]
        return ending[0] if len(ending) == 1 else None

    def tied_on_disk(self) -> dict[str, str]:
        """Tensor -> the one on disk that is the same: by their names on disk, or in memory where
        they are not there."""
        groups: dict[str, list[str]] = {}
        for parameter, owner in self.tied.items():
            groups.setdefault(owner, [owner]).append(parameter)
        pairs = {}
        for group in groups.values():
            names = [self.parts.get(parameter, ()) for parameter in group]
            first = next((found[0] for found in names if len(found) == 1), None)
            for parameter, found in zip(group, names, strict=True):
                name = found[0] if found else parameter
                if first is not None and name != first and len(found) < 2:
                    pairs[name] = first
        return pairs

    def on_disk(self, parameter: str) -> tuple[str, ...]:
        """The tensors on disk that a parameter is made of: itself where the name is on disk, none
        where nothing gives it."""
        found = self.parts.get(parameter, ())
        if not found and parameter in self.tied:
            return self.parts.get(self.tied[parameter], ())
        return found

    def in_memory(self) -> dict[str, str]:
        """Tensor on disk -> parameter, for those that are only renamed."""
        return {
            tensors[0]: parameter
            for parameter, tensors in self.parts.items()
            if len(tensors) == 1 and parameter not in self.converted
        }
