"""From a base and a fine-tune of all its weights to an adapter that PEFT loads.

One matrix is in memory at a time, in float64.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.architectures import ModelFit, read_fit
from mergeops.checkpoint import (
    ADAPTER,
    ADAPTER_CONFIG,
    CONFIG,
    Destination,
    TensorReader,
    TokenizerFile,
    read_json,
    read_manifest,
    read_range,
)
from mergeops.engine import open_input
from mergeops.errors import ConfigError, MergeError
from mergeops.extraction.changed_layers import TensorPlace, Tensors, places
from mergeops.extraction.low_rank import FactorPair, Rank, factorize
from mergeops.lazy_torch import Tensor, torch
from mergeops.planning import names_token_rows, read_inputs
from mergeops.progress import Progress
from mergeops.sources import Source

OTHERS = ("save", "leave_out", "refuse")
"""What becomes of changes outside of linear layers: saved whole, left out and said, or refused."""
KIND = "extracted"
FORMAT = 1
"""Raised when the same inputs give another adapter."""
TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
}
"""Ending of the model's class -> PEFT's name of the task."""


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
    """An adapter that was extracted."""

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


def extract(
    base: Source,
    tuned: Source,
    out: Path,
    *,
    rank: Rank,
    others: str = "save",
    progress: Progress | None = None,
) -> Extracted:
    """Write the LoRA adapter that is nearest to a full fine-tune.

    Args:
        base: the model that was fine-tuned.
        tuned: the fine-tune, of the same architecture and shapes.
        out: a new directory; it gets its name when all is written.
        rank: of each matrix.
        others: one of ``OTHERS``, for changed norms, biases, embeddings and heads.
        progress: where steps are shown.

    Raises:
        ConfigError: transformers does not know the model, so nobody knows its linear layers.
        SourceError: a file is missing, corrupt or changed.
        MergeError: nothing changed, shapes differ, or the change cannot be an adapter's.
    """
    if others not in OTHERS:
        raise ConfigError(f"others is {others!r}; allowed: {', '.join(OTHERS)}")
    progress = progress or Progress(quiet=True)
    target = Destination(out, _key(base, tuned, rank, others), KIND)
    if target.is_done():
        return _read(out)
    planned, headers, _ = read_inputs([base, tuned])
    config = read_json(planned[0].directories[0] / CONFIG)
    of_base, of_tuned = headers[planned[0].name], headers[planned[1].name]
    fit = read_fit(config, {name: stored.shape for name, stored in of_base.items()})
    if fit is None:
        raise ConfigError(
            f"transformers does not know the model_type {config.get('model_type')!r} of "
            f"{base.uri}, so which of its matrices are linear layers is not known"
        )
    found = places(of_base, of_tuned, fit)
    with contextlib.ExitStack() as opened:
        readers = [open_input(one, "F64") for one in planned]
        for reader in readers:
            opened.callback(reader.close)
        opened.enter_context(target.opened(sum(of_base[p.tensor].numel for p in found) // 8))
        draft = _AdapterDraft(readers, (of_base, of_tuned), rank, others)
        with progress.bar("factorizing") as tick:
            for i, place in enumerate(found):
                draft.add(place)
                tick(i + 1, len(found))
        draft.save_others(found, fit)
        for reader in readers:
            reader.check_unchanged()
        result = draft.write(target, base, tuned, fit, out)
    return result


class _AdapterDraft:
    """The adapter's tensors, as they come.

    Args:
        readers: of the base and the fine-tune.
        headers: their tensors.
        rank: of each matrix.
        others: one of ``OTHERS``.
    """

    def __init__(
        self,
        readers: Sequence[TensorReader],
        headers: tuple[Tensors, Tensors],
        rank: Rank,
        others: str,
    ) -> None:
        self._readers = readers
        self._headers = headers
        self._rank = rank
        self._others = others
        self._factors: dict[str, FactorPair] = {}
        self._is_conv1d: set[str] = set()
        self._other: dict[str, tuple[TensorPlace, float]] = {}
        self._saved: dict[str, Tensor] = {}
        self._modules: list[str] = []

    def add(self, place: TensorPlace) -> None:
        """Look at one tensor."""
        before, after = (self._read(i, place.tensor) for i in range(2))
        change = after - before
        length = float(torch.linalg.norm(change))
        if not math.isfinite(length):
            raise MergeError(f"{place.tensor} holds NaN or infinity in the base or the fine-tune")
        if length == 0.0:
            return
        # A head has a row for each token, as embeddings do: it is kept whole.
        is_rows = names_token_rows(place.tensor)
        if place.is_matrix and place.module is not None and not is_rows:
            is_conv1d = place.kind == "conv1d"
            # Conv1D keeps [inputs, outputs].
            turned = change.T if is_conv1d else change
            self._factors[place.module] = factorize(turned, self._rank)
            if is_conv1d:
                self._is_conv1d.add(place.module)
            return
        if self._others == "refuse":
            raise MergeError(
                f"{place.tensor} changed too, and is no weight of a linear layer; --others=save "
                "keeps its module whole in the adapter, --others=leave_out leaves it as the base's"
            )
        self._other[place.tensor] = place, length

    def save_others(self, found: Sequence[TensorPlace], fit: ModelFit) -> None:
        """Keep the modules whole that LoRA cannot change."""
        if self._others != "save":
            return
        for place, _ in self._other.values():
            if not place.module or place.module in self._factors:
                what = "has a bias" if place.module else "is put together of several tensors"
                raise MergeError(
                    f"{place.tensor} changed, and its module {what}, which no adapter saves "
                    "beside LoRA; --others=leave_out leaves it as the base's"
                )
        self._modules = sorted({str(place.module) for place, _ in self._other.values()})
        for place in found:
            if place.module in self._modules:
                self._saved[place.tensor] = self._read(1, place.tensor).float()

    def write(
        self, target: Destination, base: Source, tuned: Source, fit: ModelFit, out: Path
    ) -> Extracted:
        """Write weights, config, tokenizer and, last, the manifest."""
        from safetensors.torch import save_file

        if not self._factors and not self._saved:
            raise MergeError(
                f"{tuned.uri} changes no linear layer of {base.uri}; there is nothing to extract"
            )
        if self._is_conv1d and len(self._is_conv1d) < len(self._factors):
            raise MergeError(
                "the model has changed linear layers of both kinds, Linear and Conv1D, and one "
                "adapter describes one kind"
            )
        in_memory = fit.in_memory()
        tensors = {}
        for module, factors in self._factors.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = factors.a.contiguous()
            tensors[f"base_model.model.{module}.lora_B.weight"] = factors.b.contiguous()
        heads = {parameter: head for head, parameter in fit.tied.items()}
        for tensor, values in self._saved.items():
            parameter = in_memory[tensor]
            tensors[f"base_model.model.{parameter}"] = values.contiguous()
            if parameter in heads:
                # PEFT looks for the tied head under its own name, too.
                tensors[f"base_model.model.{heads[parameter]}"] = values.clone()
        save_file(tensors, target.partial / ADAPTER, metadata={"format": "pt"})
        described = json.dumps(self._config(base, fit), indent=2) + "\n"
        (target.partial / ADAPTER_CONFIG).write_text(described, encoding="utf-8")
        names = [ADAPTER, ADAPTER_CONFIG, *_copy_tokenizer(tuned, target.partial)]
        left_out = {} if self._others == "save" else {n: x for n, (_, x) in self._other.items()}
        result = Extracted(
            out=out,
            matrices=tuple(
                Matrix(module, f.rank, f.length, f.error) for module, f in self._factors.items()
            ),
            saved=tuple(self._modules),
            left_out=left_out,
            bytes=(target.partial / ADAPTER).stat().st_size,
        )
        content = result.to_dict()
        for unneeded in ("out", "was_there"):
            del content[unneeded]
        content |= {"key": target.key, "base": base.sha256, "tuned": tuned.sha256}
        target.close({"plan_digest": target.key, KIND: content}, names)
        return result

    def _read(self, reader: int, tensor: str) -> Tensor:
        stored = self._headers[reader][tensor]
        values: Tensor = read_range(self._readers[reader], stored.name, 0, stored.numel).double()
        return values.view(stored.shape)

    def _config(self, base: Source, fit: ModelFit) -> dict[str, Any]:
        """Content of adapter_config.json."""
        ranks = {module: factors.rank for module, factors in self._factors.items()}
        # The rank that most have; the others are exceptions.
        usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
        exceptions = {module: rank for module, rank in ranks.items() if rank != usual}
        tied = {*fit.tied, *fit.tied.values()}
        task = next((task for end, task in TASKS.items() if fit.model_class.endswith(end)), None)
        return {
            "peft_type": "LORA",
            "task_type": task,
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


def _key(base: Source, tuned: Source, rank: Rank, others: str) -> str:
    """Digest of everything that decides the adapter."""
    content = [FORMAT, base.sha256, tuned.sha256, dataclasses.asdict(rank), others]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _copy_tokenizer(tuned: Source, to: Path) -> list[str]:
    names = [name for name in TokenizerFile if (tuned.path / name).is_file()]
    for name in names:
        shutil.copyfile(tuned.path / name, to / name)
    return [str(name) for name in names]


def _read(out: Path) -> Extracted:
    """What an earlier call wrote."""
    manifest = read_manifest(out) or {}
    content = manifest[KIND]
    return Extracted(
        out=out,
        matrices=tuple(
            Matrix(m["module"], m["rank"], m["length"], m["error"]) for m in content["matrices"]
        ),
        saved=tuple(content["saved"]),
        left_out=content["left_out"],
        bytes=content["bytes"],
        was_there=True,
    )
