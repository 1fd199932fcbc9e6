"""Runs that left the same weights: a training that was repeated with its seed."""

from __future__ import annotations

import filecmp
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mergeops.adoption.found import FoundRun
from mergeops.checkpoint import ADAPTER_CONFIG

SAMPLE_BYTES, SAMPLES = 4096, 16


def without_repetitions(
    runs: Sequence[FoundRun],
) -> tuple[list[FoundRun], list[tuple[FoundRun, FoundRun]]]:
    """The runs with weights of their own, and each of the others with the one that it repeats.

    Samples of the files tell nearly all apart; only what is equal there is read in full. What lies
    in an artifact store is not compared.
    """
    kept: list[FoundRun] = []
    repeated = []
    alike: dict[object, list[FoundRun]] = defaultdict(list)
    for run in runs:
        samples = _samples(run)
        first = next((one for one in alike[samples] if samples and _is_same(one, run)), None)
        if first is not None:
            repeated.append((run, first))
            continue
        kept.append(run)
        alike[samples].append(run)
    return kept, repeated


def _files(run: FoundRun) -> list[Path]:
    folder = Path(str(run.checkpoint))
    names = sorted(folder.glob("*.safetensors")) if folder.is_absolute() else []
    # Equal factors with another scale are other weights.
    return [*names, *folder.glob(ADAPTER_CONFIG)] if names else []


def _samples(run: FoundRun) -> tuple[tuple[str, int, bytes], ...]:
    """The name, the size and a few bytes of each weight file; none where they are not here."""
    samples = []
    for path in _files(run):
        size = path.stat().st_size
        with open(path, "rb") as file:
            parts = []
            for number in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
                parts.append(file.read(SAMPLE_BYTES))
        samples.append((path.name, size, b"".join(parts)))
    return tuple(samples)


def _is_same(one: FoundRun, other: FoundRun) -> bool:
    pairs = zip(_files(one), _files(other), strict=True)
    return all(filecmp.cmp(ours, theirs, shallow=False) for ours, theirs in pairs)
