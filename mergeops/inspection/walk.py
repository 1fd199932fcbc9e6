"""One pass over the weights of all inputs, a few rows of each at a time."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.checkpoint import FLOATS, StoredTensor, TensorReader, read_range
from mergeops.engine import open_input
from mergeops.errors import MergeError
from mergeops.inspection.effective_rank import RankMeter
from mergeops.inspection.moments import Moments
from mergeops.lazy_torch import torch
from mergeops.planning import is_before_layers, layer_of, read_inputs
from mergeops.sources import Source

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 18
"""Entries of each input that are in memory at a time, in whole rows."""


@dataclass(frozen=True)
class TensorFacts:
    """Statistics of one tensor."""

    name: str
    moments: Moments
    ranks: tuple[float | None, ...]
    """Effective rank of each source's task vector; None without a base, for anything but a
    matrix, and where nothing changed."""


@dataclass(frozen=True)
class Facts:
    """Statistics of all tensors that every input has in one shape."""

    tensors: tuple[TensorFacts, ...]
    left_out: Mapping[str, str]
    """Tensor -> why it was not compared."""
    alike: frozenset[tuple[str, str]]
    """Pairs of inputs whose compared tensors are equal, entry by entry."""

    def by_layer(self) -> dict[str, list[TensorFacts]]:
        """Layer -> its tensors, from the embeddings to the head."""
        places = {facts.name: layer_of(facts.name) for facts in self.tensors}
        stacks = list(dict.fromkeys(place[0] for place in places.values() if place))
        groups: dict[tuple[int, int, int], tuple[str, list[TensorFacts]]] = {}
        for facts in self.tensors:
            place = places[facts.name]
            if place is None:
                before = is_before_layers(facts.name)
                key = (0, 0, 0) if before else (2, 0, 0)
                label = "embeddings" if before else "after the layers"
            else:
                stack, number = place
                key = (1, stacks.index(stack), number)
                label = f"{stack.rstrip('.')} {number}" if len(stacks) > 1 else f"layer {number}"
            groups.setdefault(key, (label, []))[1].append(facts)
        return {groups[key][0]: groups[key][1] for key in sorted(groups)}


def walk(
    base: Source | None,
    sources: Sequence[Source],
    *,
    with_ranks: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Facts:
    """Compare every tensor that all inputs have.

    Args:
        base: what the sources are compared with; None compares them with the first source.
        sources: at least one.
        with_ranks: whether to compute effective ranks.
        progress: told (entries done, entries in all).

    Raises:
        SourceError: a file is missing, corrupt or changed.
        MergeError: the inputs have no tensor in common.
    """
    inputs = [*([base] if base else []), *sources]
    planned, headers, _ = read_inputs(inputs)
    shared, left_out = _shared(headers)
    total = sum(stored.numel for stored in shared.values())
    done = 0
    compared = []
    names = [source.name for source in inputs]
    alike = set(itertools.combinations(range(len(names)), 2))
    with contextlib.ExitStack() as opened:
        readers = [open_input(source, "F64") for source in planned]
        for reader in readers:
            opened.callback(reader.close)
        for name, stored in shared.items():
            matrix = with_ranks and base is not None and len(stored.shape) == 2
            meters = [RankMeter(*stored.shape) for _ in sources] if matrix else []
            moments: Moments | None = None
            for start, stop in _cuts(stored):
                chunk = _read(readers, [tensors[name] for tensors in headers.values()], start, stop)
                alike = {(i, j) for i, j in alike if torch.equal(chunk[i], chunk[j])}
                own = chunk[1:] if base is not None else chunk
                part = Moments.of(chunk[0], own, has_base=base is not None)
                moments = part if moments is None else moments + part
                for i, meter in enumerate(meters):
                    meter.add((own[i] - chunk[0]).view(-1, stored.shape[1]))
                done += stop - start
                if progress is not None:
                    progress(done, total)
            if moments is not None:
                ranks = [meter.value() for meter in meters] or [None] * len(sources)
                compared.append(TensorFacts(name, moments, tuple(ranks)))
        for reader in readers:
            reader.check_unchanged()
    equal = frozenset((names[i], names[j]) for i, j in alike)
    return Facts(tuple(compared), left_out, equal)


def _shared(
    headers: Mapping[str, Mapping[str, StoredTensor]],
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors that are compared, and why others are not."""
    (first, reference), *others = headers.items()
    shared, left_out = {}, {}
    for name, stored in reference.items():
        why = None if stored.dtype in FLOATS else f"{stored.dtype} holds no real numbers"
        for other, tensors in others:
            if name not in tensors:
                why = f"{other} lacks it"
            elif tensors[name].shape != stored.shape:
                why = f"{list(stored.shape)} in {first}, {list(tensors[name].shape)} in {other}"
        if why:
            left_out[name] = why
        else:
            shared[name] = stored
    for _, tensors in others:
        left_out |= {name: f"{first} lacks it" for name in tensors if name not in reference}
    if not shared:
        raise MergeError(
            f"{', '.join(headers)} have no tensor that is in all of them, in one shape"
        )
    return shared, left_out


def _cuts(stored: StoredTensor) -> list[tuple[int, int]]:
    """Ranges of whole rows of about ``CHUNK`` entries."""
    columns = stored.shape[-1] if len(stored.shape) == 2 else 1
    step = max(1, CHUNK // columns) * columns
    return [(i, min(i + step, stored.numel)) for i in range(0, stored.numel, step)]


def _read(
    readers: Sequence[TensorReader], stored: Sequence[StoredTensor], start: int, stop: int
) -> Tensor:
    """``[inputs, stop - start]`` float64."""
    chunk = torch.empty((len(readers), stop - start), dtype=torch.float64)
    for row, reader, tensor in zip(chunk, readers, stored, strict=True):
        row.copy_(read_range(reader, tensor.name, start, stop))
    return chunk
