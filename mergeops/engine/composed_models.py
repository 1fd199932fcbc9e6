"""Models that are put together of other models' tensors, by a plan: streamed, resumable, and named
by its digest as merges are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergeops.architectures import read_fit
from mergeops.checkpoint import SINGLE, hold, read_manifest, replace_with, weights_sha256
from mergeops.engine.execute import merge_and_pin
from mergeops.lazy_torch import Tensor
from mergeops.methods import get
from mergeops.planning import (
    Plan,
    PlannedInput,
    TensorTask,
    check_result,
    cut_into_shards,
    find_companions,
    read_inputs,
    result_config,
)
from mergeops.progress import Progress
from mergeops.recipe import parse_size
from mergeops.sources import Source

METHOD = "passthrough"
MADE_INPUTS = ("gates", "rows")
"""What inputs that were made are called, and begins the names of their folders."""
SHARD_SIZE = "5GB"


def made_input(
    name: str,
    uri: str,
    cache_dir: Path,
    content: Sequence[Any],
    make: Callable[[], Mapping[str, Tensor]],
) -> PlannedInput:
    """Tensors that were made for a plan, as an input of it; made once.

    Args:
        name: the input's.
        uri: what the plan calls it.
        cache_dir: where they are kept.
        content: JSON types that decide the tensors.
        make: makes them.
    """
    from safetensors.torch import save_file

    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    folder = cache_dir / f"{name}-{key[:32]}"
    if not (folder / SINGLE).is_file():
        tensors = dict(make())
        folder.mkdir(parents=True, exist_ok=True)
        with replace_with(folder / SINGLE) as partial:
            save_file(tensors, partial, metadata={"format": "pt"})
    hold(folder, SINGLE)
    source = Source(name, uri, folder, weights_sha256(folder, cache_dir=cache_dir))
    [planned], _, _ = read_inputs([source])
    return planned


def assemble(
    tasks: Sequence[TensorTask],
    inputs: Sequence[PlannedInput],
    made: PlannedInput,
    *,
    small_files: Sequence[PlannedInput],
    home: PlannedInput,
    settings: Mapping[str, Any],
    recipe: Mapping[str, Any],
    notes: Sequence[str],
    label: str,
    card: Callable[[Plan], str],
    out: Path,
    cache_dir: Path,
    seed: int = 0,
    device: str = "auto",
    progress: Progress,
) -> tuple[Plan, bool]:
    """Write the model.

    Args:
        tasks: where each of its tensors is from.
        inputs: the plan's, as ``tasks`` count them.
        made: one more, the last.
        small_files: those that small files are from, the config's first.
        home: gives the tokenizer.
        settings: what config.json says instead of, or besides, what the first input's does.
        recipe: what the plan calls it.
        notes: what the user should know; shown with those of the checks.
        label: what a refusal of the result calls it.
        card: makes README.md of the plan.
        out: a new directory, or one that holds this very model.
        cache_dir: see ``merge_and_pin``.
        seed: the plan's.
        device: of the copying.
        progress: where steps are shown.

    Returns:
        The plan, and whether the model was there.

    Raises:
        MergeError: transformers would not load the result; or as ``merge_and_pin``.
    """
    companions, told = find_companions(small_files, home, "auto", None)
    config = {**result_config(companions), **settings}
    shapes = {task.name: task.shape for task in tasks}
    of_inputs = [note for planned in inputs for note in planned.notes]
    wrong = check_result(read_fit(config, shapes), config, shapes, label)
    warnings = [*notes, *of_inputs, *told, *wrong]
    plan = Plan(
        method=METHOD,
        method_version=get(METHOD).version,
        parameters=dataclasses.asdict(get(METHOD).parameters()),
        base=None,
        sources=(*inputs, made),
        shards=cut_into_shards(tasks, parse_size("shard_size", SHARD_SIZE)),
        companions=companions,
        config=dict(settings),
        compute="float32",
        seed=seed,
        recipe=dict(recipe),
        warnings=tuple(warnings),
    )
    for note in warnings:
        progress.step(f"note: {note}")
    was_there = out.is_dir() and read_manifest(out) is not None
    with progress.bar(f"writing {out}", is_bytes=True) as tick:
        plan = merge_and_pin(
            plan, out, cache_dir=cache_dir, device=device, progress=tick, card=card(plan)
        )
    return plan, was_there
