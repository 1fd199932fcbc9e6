"""Merges of LoRA adapters of one base whose change is known without the base: a weighted sum.

With sources W + s_i B_i A_i and weights w_i the merge is W + sum(w_i s_i B_i A_i), whose factors
are those of the sources beside each other (Hu et al. 2021, https://arxiv.org/abs/2106.09685).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from mergeops.adapters import Adapter, LowRank, open_adapter
from mergeops.checkpoint import CheckpointReader, read_tensor
from mergeops.engine import Job, work_of
from mergeops.extraction.adapter_draft import takes_lora
from mergeops.extraction.changed_layers import TensorPlace
from mergeops.lazy_torch import Tensor
from mergeops.methods import get
from mergeops.planning import Plan

LINEAR = ("linear", "task_arithmetic")
"""Methods whose result is a weighted sum of the sources, or of the task vectors, and no more."""


class LoraPool:
    """The adapters that a plan merges, where all of its sources are adapters of its base.

    Args:
        plan: pinned.
    """

    def __init__(self, plan: Plan) -> None:
        self._opened = contextlib.ExitStack()
        self._jobs = work_of(plan).jobs
        self._formula = get(plan.method).formula
        self._adapters: list[tuple[Adapter, CheckpointReader]] = []
        if plan.method not in LINEAR or plan.vocabulary is not None:
            return
        base = os.path.realpath(plan.base.path) if plan.base else ""
        inputs = plan.inputs
        if any(planned.renamed or planned.cut for planned in inputs) or any(
            os.path.realpath(source.adapter_base or "") != base for source in plan.sources
        ):
            return
        for source in plan.sources:
            adapter = open_adapter(Path(source.path), Path(str(source.adapter_base)))
            reader = CheckpointReader(adapter.adapter, source.stamps)
            self._opened.callback(reader.close)
            self._adapters.append((adapter, reader))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def factors(self, place: TensorPlace) -> list[tuple[Tensor, Tensor]] | None:
        """Pairs of B ``[outputs, r]`` and A ``[r, inputs]``, float64, whose products add up to the
        merge's change of a tensor; None where the sources' factors do not say it."""
        weights = self._weights(self._jobs[place.tensor])
        if not weights:
            return None
        pairs = []
        for weight, (adapter, reader) in zip(weights, self._adapters, strict=True):
            change = adapter.changes.get(place.tensor)
            if place.tensor in adapter.origins:
                return None
            if change is None:
                continue
            if not isinstance(change, LowRank) or not _is_plain(change, place):
                return None
            b, a = (read_tensor(reader, key).double() for key in (change.b, change.a))
            pairs.append((b * (weight * change.scale), a))
        return pairs

    def check_unchanged(self) -> None:
        """Refuse files that changed since they were planned with."""
        for _, reader in self._adapters:
            reader.check_unchanged()

    def _weights(self, job: Job) -> Sequence[float]:
        """Of the task vectors; none where the merge is no sum of them."""
        if not self._adapters or self._formula is None or job.task.sources:
            return ()
        formula = self._formula(job.parameters, job.view, len(self._adapters))
        weights: list[float] = [formula.scale * weight for weight in formula.weights]
        # Without a base in the formula the base itself is multiplied by the sum of the weights.
        is_sum = job.has_base or math.isclose(math.fsum(weights), 1.0, rel_tol=1e-12)
        return weights if is_sum else ()


def _is_plain(change: LowRank, place: TensorPlace) -> bool:
    """Whether it is B A of one matrix, turned where Conv1D keeps [inputs, outputs]."""
    is_one = change.experts == 1 and change.expert is None and not change.row
    is_one = is_one and not change.is_convolution
    return takes_lora(place) and is_one and change.turned == (place.kind == "conv1d")
