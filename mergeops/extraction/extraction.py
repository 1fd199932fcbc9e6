"""From a base and a fine-tune of all its weights to an adapter that PEFT loads.

One matrix is in memory at a time, in float64.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
from pathlib import Path

from mergeops.checkpoint import (
    ADAPTER,
    ADAPTER_CONFIG,
    Destination,
    TensorReader,
    TokenizerFile,
    read_manifest,
    read_range,
)
from mergeops.engine import open_input
from mergeops.errors import ConfigError
from mergeops.extraction.adapter_draft import OTHERS, AdapterDraft, Extracted, fit_of
from mergeops.extraction.changed_layers import Tensors, places
from mergeops.extraction.low_rank import Rank, factorize
from mergeops.lazy_torch import Tensor
from mergeops.planning import read_inputs
from mergeops.progress import Progress
from mergeops.sources import Source

KIND = "extracted"
FORMAT = 1
"""Raised when the same inputs give another adapter."""


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
        return Extracted.from_note(out, (read_manifest(out) or {})[KIND])
    planned, headers, renamed = read_inputs([base, tuned])
    for note in [*renamed, *(note for one in planned for note in one.notes)]:
        progress.step(f"note: {note}")
    of_base, of_tuned = headers[planned[0].name], headers[planned[1].name]
    fit = fit_of(planned[0].directories[0], base.uri, of_base)
    found = places(of_base, {name: stored.shape for name, stored in of_tuned.items()}, fit)
    with contextlib.ExitStack() as opened:
        readers = [open_input(one, "F64") for one in planned]
        for reader in readers:
            opened.callback(reader.close)
        opened.enter_context(target.opened(sum(of_base[p.tensor].numel for p in found) // 8))
        draft = AdapterDraft(
            fit,
            functools.partial(read_double, readers[0], of_base),
            functools.partial(read_double, readers[1], of_tuned),
            lambda _, change, __: factorize(change, rank),
            others,
        )
        with progress.bar("factorizing") as tick:
            for i, place in enumerate(found):
                draft.add(place)
                tick(i + 1, len(found))
        draft.save_others(found)
        for reader in readers:
            reader.check_unchanged()
        result = draft.write(target, base, out)
        names = [ADAPTER, ADAPTER_CONFIG, *_copy_tokenizer(tuned, target.partial)]
        content = result.noted() | {"key": target.key, "base": base.sha256, "tuned": tuned.sha256}
        target.close({"plan_digest": target.key, KIND: content}, names)
    return result


def read_double(reader: TensorReader, headers: Tensors, tensor: str) -> Tensor:
    """A tensor whole, in float64."""
    stored = headers[tensor]
    values: Tensor = read_range(reader, stored.name, 0, stored.numel).double()
    return values.view(stored.shape)


def _key(base: Source, tuned: Source, rank: Rank, others: str) -> str:
    """Digest of everything that decides the adapter."""
    content = [FORMAT, base.sha256, tuned.sha256, dataclasses.asdict(rank), others]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _copy_tokenizer(tuned: Source, to: Path) -> list[str]:
    names = [name for name in TokenizerFile if (tuned.path / name).is_file()]
    for name in names:
        shutil.copyfile(tuned.path / name, to / name)
    return [str(name) for name in names]
