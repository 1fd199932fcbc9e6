"""A merge written as a LoRA adapter of its base: exactly, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from pathlib import Path

from mergeops.checkpoint import (
    ADAPTER,
    ADAPTER_CONFIG,
    Destination,
    TokenizerFile,
    read_manifest,
)
from mergeops.engine import CARD, OpenInputs, default_card, manifest_content, open_input, pour
from mergeops.errors import ConfigError, MergeError
from mergeops.extraction.adapter_draft import AdapterDraft, Extracted, fit_of
from mergeops.extraction.changed_layers import TensorPlace, places
from mergeops.extraction.extraction import read_double
from mergeops.extraction.lora_pools import LINEAR, LoraPool
from mergeops.extraction.low_rank import ROUNDING, FactorPair, factorize_sum, factorize_whole
from mergeops.lazy_torch import Tensor, torch
from mergeops.planning import Plan, Shard, read_inputs, write_companions
from mergeops.progress import Progress
from mergeops.recipe import Recipe
from mergeops.sources import Resolved, Source

KIND = "merged"
FORMAT = 1
"""Raised when the same plan gives another adapter."""


def adapter_digest(plan: Plan) -> str:
    """What names the adapter of a pinned plan; the full weights have the plan's own digest."""
    return hashlib.sha256(json.dumps([FORMAT, "adapter", plan.digest]).encode()).hexdigest()


def base_of_adapter(base: Source | None) -> Source:
    """The full model that a merge's adapter is for.

    Args:
        base: what the recipe names as such.

    Raises:
        ConfigError: it names none, or an adapter.
    """
    if base is None or base.is_adapter:
        what = "is missing" if base is None else "is an adapter itself"
        raise ConfigError(
            f"output.as is adapter, but base {what}; name the full model that the adapter is for: "
            "base=URI"
        )
    return base


def merge_as_adapter(
    plan: Plan,
    base: Source | None,
    out: Path,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> Extracted:
    """Write the LoRA adapter that makes the merge of its base.

    Where the sources' own factors say the change of a matrix it is made of them; elsewhere the
    matrix is merged as the plan says, and its change decomposed in float64.

    Args:
        plan: pinned.
        base: what the recipe names as such.
        out: a new directory; it gets its name when all is written.
        device: of the arithmetic.
        progress: where steps are shown.

    Raises:
        ConfigError: the recipe has no base, or transformers does not know the model.
        SourceError: a file is missing, corrupt or changed.
        MergeError: the merge is not of low rank, or no adapter for another reason.
    """
    base = base_of_adapter(base)
    progress = progress or Progress(quiet=True)
    target = Destination(out, adapter_digest(plan), KIND)
    if target.is_done():
        return Extracted.from_note(out, (read_manifest(out) or {})[KIND])
    [planned], headers, _ = read_inputs([base])
    of_base = headers[planned.name]
    fit = fit_of(planned.directories[0], base.uri, of_base)
    found = places(of_base, {task.name: task.shape for task in plan.tasks}, fit, "the merge")
    rounding = ROUNDING[plan.compute]

    def factorize(place: TensorPlace, change: Tensor, after: Tensor) -> FactorPair:
        whole = factorize_whole(change, rounding * float(torch.linalg.norm(after)))
        return _checked(plan, place, whole)

    with contextlib.ExitStack() as opened:
        before = open_input(planned, "F64")
        opened.callback(before.close)
        pool = opened.enter_context(LoraPool(plan))
        merged = opened.enter_context(_MergedTensors(plan, device))
        opened.enter_context(target.opened(sum(of_base[p.tensor].numel for p in found) // 8))
        draft = AdapterDraft(
            fit,
            functools.partial(read_double, before, of_base),
            merged.read,
            factorize,
            "save",
            rounding=rounding,
            way_out="write the full weights (output.as=model)",
        )
        with progress.bar("factorizing") as tick:
            for i, place in enumerate(found):
                known = pool.factors(place)
                if known is None:
                    draft.add(place)
                elif (factors := factorize_sum(known)) is not None:
                    draft.take(place, _checked(plan, place, factors))
                tick(i + 1, len(found))
        draft.save_others(found)
        before.check_unchanged()
        pool.check_unchanged()
        made = draft.write(target, base, out)
        tokenizer = [c for c in plan.companions if c.name in {*TokenizerFile}]
        names = [ADAPTER, ADAPTER_CONFIG, *write_companions(tokenizer, target.partial, "float32")]
        card = default_card(plan, is_adapter=True)
        (target.partial / CARD).write_text(card, encoding="utf-8")
        content = manifest_content(plan) | {
            "plan_digest": target.key,
            KIND: made.noted() | {"key": target.key, "plan": plan.digest, "as": "adapter"},
        }
        target.close(content, [*names, CARD])
    return made


def check_made_here(recipe: Recipe) -> None:
    """Refuse a recipe for an adapter that other machines would make.

    Raises:
        ConfigError: they would.
    """
    if recipe.output.is_adapter and not recipe.executor.is_here:
        raise ConfigError(
            f"output.as is adapter, which is made on this machine, and executor is "
            f"{recipe.executor.name}; leave one of them out"
        )


def check_low_rank(recipe: Recipe, resolved: Resolved) -> None:
    """Refuse a search for an adapter, all of whose merges may turn out to be none.

    Raises:
        ConfigError: the method or a source makes full rank of low.
    """
    if recipe.method.name not in LINEAR:
        raise ConfigError(
            f"output.as is adapter and method is {recipe.method.name}; whether its merges are of "
            f"low rank shows only when they are made, so a search takes {' or '.join(LINEAR)} of "
            "adapters; run one recipe with output.as=adapter, or search for full weights"
        )
    for name, source in resolved.sources.items():
        if not source.is_adapter:
            raise ConfigError(
                f"output.as is adapter and sources.{name} is {source.uri}, a full model; a search "
                "takes adapters only, whose merges are of low rank; search for full weights, and "
                "`mergeops extract` the best one"
            )


def _checked(plan: Plan, place: TensorPlace, factors: FactorPair) -> FactorPair:
    """Refuse factors that are no smaller than their matrix."""
    outputs, inputs = len(factors.b), factors.a.shape[1]
    if factors.rank * (outputs + inputs) < outputs * inputs:
        return factors
    raise MergeError(
        f"output.as is adapter, but {plan.method} of these sources is not of low rank: the change "
        f"of {place.tensor} has rank {factors.rank} of {min(outputs, inputs)}, and its factors are "
        "no smaller than the matrix; write the full weights (output.as=model), or from those the "
        "nearest adapter of a rank: mergeops extract BASE MERGE OUT --rank N"
    )


class _MergedTensors:
    """A plan's result, tensor by tensor and not rounded to the format that a model is saved in.

    Args:
        plan: what to merge.
        device: of the arithmetic.
    """

    def __init__(self, plan: Plan, device: str) -> None:
        self._plan = plan
        self._device = device
        self._tasks = {task.name: task for task in plan.tasks}
        self._inputs = OpenInputs()

    def __enter__(self) -> _MergedTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._inputs.close()

    def read(self, name: str) -> Tensor:
        """The whole tensor."""
        task = dataclasses.replace(self._tasks[name], dtype="F64")
        alone = dataclasses.replace(self._plan, shards=(Shard(name, (task,)),))
        content = bytearray(task.nbytes)

        def take(_: str, offset: int, data: memoryview) -> None:
            content[offset : offset + len(data)] = data

        pour(alone, take, device=self._device, inputs=self._inputs)
        return torch.frombuffer(content, dtype=torch.float64).view(task.shape)
