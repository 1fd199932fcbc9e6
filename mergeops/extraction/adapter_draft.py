"""An adapter while it is made: factors of linear layers, and modules that are kept whole."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.architectures import ModelFit, read_fit
from mergeops.checkpoint import ADAPTER, ADAPTER_CONFIG, CONFIG, Destination, read_json
from mergeops.errors import ConfigError, MergeError
from mergeops.extraction.changed_layers import TensorPlace, Tensors
from mergeops.extraction.low_rank import FactorPair
from mergeops.lazy_torch import Tensor, torch
from mergeops.planning import names_token_rows
from mergeops.sources import Source

OTHERS = ("save", "leave_out", "refuse")
"""What becomes of changes outside of linear layers: saved whole, left out and said, or refused."""
TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
}
"""Ending of the model's class -> PEFT's name of the task."""
Read = Callable[[str], Tensor]
"""Gives a tensor of the files, whole, in float64."""
Factorize = Callable[[TensorPlace, Tensor, Tensor], FactorPair]
"""``factorize(place, change, after)`` of ``[outputs, inputs]`` float64, and the changed weight."""


@dataclass(frozen=True)
class Matrix:
    """What became of one linear layer."""

    module: str
    rank: int
    length: float
    """Frobenius norm of the change."""
    error: float
    """Of what the adapter's change differs from it."""

    @property
    def relative_error(self) -> float:
        """From 0 for an exact adapter to 1."""
        return self.error / self.length


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """An adapter that was made."""

    out: Path
    matrices: tuple[Matrix, ...]
    saved: tuple[str, ...]
    """Modules that are saved whole, since LoRA cannot change them."""
    left_out: dict[str, float]
    """Tensor that changed and is in the adapter nowhere -> the length of its change."""
    bytes: int
    was_there: bool = False

    @property
    def relative_error(self) -> float:
        """Of the change of the whole model, what is left out included; 0 where nothing changed."""
        dropped = math.fsum(length**2 for length in self.left_out.values())
        lost = math.fsum(matrix.error**2 for matrix in self.matrices) + dropped
        whole = math.fsum(matrix.length**2 for matrix in self.matrices) + dropped
        return math.sqrt(lost / whole) if whole else 0.0

    def __str__(self) -> str:
        ranks = [matrix.rank for matrix in self.matrices]
        span = f"{min(ranks)} to {max(ranks)}" if len({*ranks}) > 1 else f"{max(ranks, default=0)}"
        return f"{len(ranks)} matrices of rank {span}, {self.bytes / 1e6:.3g} MB"

    def measures(self) -> dict[str, float]:
        """What the run of a trial has as metrics."""
        ranks = [matrix.rank for matrix in self.matrices]
        return {
            "adapter/relative_error": self.relative_error,
            "adapter/bytes": float(self.bytes),
            "adapter/matrices": float(len(ranks)),
            "adapter/largest_rank": float(max(ranks, default=0)),
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "out": str(self.out),
            "relative_error": self.relative_error,
            "bytes": self.bytes,
            "matrices": [
                dataclasses.asdict(m) | {"relative_error": m.relative_error} for m in self.matrices
            ],
            "saved": list(self.saved),
            "left_out": dict(self.left_out),
            "was_there": self.was_there,
        }

    def noted(self) -> dict[str, Any]:
        """What the manifest keeps of it, for ``from_note``."""
        kept = self.to_dict()
        del kept["out"], kept["was_there"]
        return kept

    @classmethod
    def from_note(cls, out: Path, note: Mapping[str, Any]) -> Extracted:
        """What an earlier call wrote into ``out``."""
        return cls(
            out=out,
            matrices=tuple(
                Matrix(m["module"], m["rank"], m["length"], m["error"]) for m in note["matrices"]
            ),
            saved=tuple(note["saved"]),
            left_out=note["left_out"],
            bytes=note["bytes"],
            was_there=True,
        )


def fit_of(directory: Path, uri: str, tensors: Tensors) -> ModelFit:
    """Which of a model's tensors are linear layers.

    Raises:
        ConfigError: transformers does not know the model.
    """
    config = read_json(directory / CONFIG)
    fit = read_fit(config, {name: stored.shape for name, stored in tensors.items()})
    if fit is None:
        raise ConfigError(
            f"transformers does not know the model_type {config.get('model_type')!r} of {uri}, so "
            "which of its matrices are linear layers is not known"
        )
    return fit


class AdapterDraft:
    """The adapter's tensors, as they come.

    Args:
        fit: of the base.
        before: reads the base.
        after: reads what the adapter shall make of it.
        factorize: makes the two factors of a change.
        others: one of ``OTHERS``.
        rounding: of a weight's length; a change that is no longer is none.
        way_out: what to do about a change that an adapter cannot hold.
    """

    def __init__(
        self,
        fit: ModelFit,
        before: Read,
        after: Read,
        factorize: Factorize,
        others: str,
        *,
        rounding: float = 0.0,
        way_out: str = "--others=leave_out leaves it as the base's",
    ) -> None:
        self._fit = fit
        self._before = before
        self._after = after
        self._factorize = factorize
        self._others = others
        self._rounding = rounding
        self._way_out = way_out
        self._factors: dict[str, FactorPair] = {}
        self._is_conv1d: set[str] = set()
        self._other: dict[str, tuple[TensorPlace, float]] = {}
        self._saved: dict[str, Tensor] = {}
        self._modules: list[str] = []

    def add(self, place: TensorPlace) -> None:
        """Look at one tensor."""
        before, after = self._before(place.tensor), self._after(place.tensor)
        change = after - before
        length = float(torch.linalg.norm(change))
        if not math.isfinite(length):
            raise MergeError(f"{place.tensor} holds NaN or infinity before or after its change")
        if length <= self._rounding * float(torch.linalg.norm(after)):
            return
        if takes_lora(place):
            # Conv1D keeps [inputs, outputs].
            turned = change.T if place.kind == "conv1d" else change
            self.take(place, self._factorize(place, turned, after))
            return
        if self._others == "refuse":
            raise MergeError(
                f"{place.tensor} changed too, and is no weight of a linear layer; --others=save "
                "keeps its module whole in the adapter, --others=leave_out leaves it as the base's"
            )
        self._other[place.tensor] = place, length

    def take(self, place: TensorPlace, factors: FactorPair) -> None:
        """Note the factors of a tensor's change."""
        module = str(place.module)
        self._factors[module] = factors
        if place.kind == "conv1d":
            self._is_conv1d.add(module)

    def save_others(self, found: Sequence[TensorPlace]) -> None:
        """Keep the modules whole that LoRA cannot change."""
        if self._others != "save":
            return
        for place, _ in self._other.values():
            if not place.module or place.module in self._factors:
                what = "has a bias" if place.module else "is put together of several tensors"
                raise MergeError(
                    f"{place.tensor} changed, and its module {what}, which no adapter saves "
                    f"beside LoRA; {self._way_out}"
                )
        self._modules = sorted({str(place.module) for place, _ in self._other.values()})
        for place in found:
            if place.module in self._modules:
                self._saved[place.tensor] = self._after(place.tensor).float()

    def write(self, target: Destination, base: Source, out: Path) -> Extracted:
        """Write weights and config; what ``out`` is once the target is closed comes back.

        Raises:
            MergeError: nothing changed, or the adapter would be of two kinds.
        """
        from safetensors.torch import save_file

        if not self._factors and not self._saved:
            raise MergeError(
                f"no linear layer of {base.uri} is changed; there is nothing to extract"
            )
        if self._is_conv1d and len(self._is_conv1d) < len(self._factors):
            raise MergeError(
                "the model has changed linear layers of both kinds, Linear and Conv1D, and one "
                "adapter describes one kind"
            )
        in_memory = self._fit.in_memory()
        tensors = {}
        for module, factors in self._factors.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = factors.a.contiguous()
            tensors[f"base_model.model.{module}.lora_B.weight"] = factors.b.contiguous()
        heads = {parameter: head for head, parameter in self._fit.tied.items()}
        for tensor, values in self._saved.items():
            parameter = in_memory[tensor]
            tensors[f"base_model.model.{parameter}"] = values.contiguous()
            if parameter in heads:
                # PEFT looks for the tied head under its own name, too.
                tensors[f"base_model.model.{heads[parameter]}"] = values.clone()
        save_file(tensors, target.partial / ADAPTER, metadata={"format": "pt"})
        described = json.dumps(self._config(base), indent=2) + "\n"
        (target.partial / ADAPTER_CONFIG).write_text(described, encoding="utf-8")
        left_out = {} if self._others == "save" else {n: x for n, (_, x) in self._other.items()}
        return Extracted(
            out=out,
            matrices=tuple(
                Matrix(module, f.rank, f.length, f.error) for module, f in self._factors.items()
            ),
            saved=tuple(self._modules),
            left_out=left_out,
            bytes=(target.partial / ADAPTER).stat().st_size,
        )

    def _config(self, base: Source) -> dict[str, Any]:
        """Content of adapter_config.json."""
        ranks = {module: factors.rank for module, factors in self._factors.items()}
        # The rank that most have; the others are exceptions.
        usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
        exceptions = {module: rank for module, rank in ranks.items() if rank != usual}
        tied = {*self._fit.tied, *self._fit.tied.values()}
        model = self._fit.model_class
        return {
            "peft_type": "LORA",
            "task_type": next((task for end, task in TASKS.items() if model.endswith(end)), None),
            "base_model_name_or_path": base.uri.removeprefix("hf://").partition("@")[0],
            "revision": base.revision,
            "r": usual,
            # alpha / r is 1.
            "lora_alpha": usual,
            "rank_pattern": exceptions,
            "alpha_pattern": exceptions,
            "target_modules": sorted(ranks),
            "modules_to_save": self._modules or None,
            "ensure_weight_tying": any(f"{module}.weight" in tied for module in self._modules),
            "fan_in_fan_out": bool(self._is_conv1d),
            "bias": "none",
            "lora_dropout": 0.0,
            "inference_mode": True,
        }


def takes_lora(place: TensorPlace) -> bool:
    """Whether a change of the tensor becomes two factors. A head has a row for each token, as
    embeddings do: it is kept whole."""
    return place.is_matrix and place.module is not None and not names_token_rows(place.tensor)
