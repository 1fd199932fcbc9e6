"""Which of the found checkpoints can be merged with each other, and why the others cannot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergeops.adoption.found import FoundRun
from mergeops.sources import is_hub_name, pinned_name


@dataclass(frozen=True)
class Group:
    """Checkpoints of one architecture, one shape, one kind of numbers and one base."""

    architectures: tuple[str, ...]
    base: str | None
    members: tuple[FoundRun, ...]
    reason: str | None = None
    """What sets it apart from the largest group; None for the largest."""


def group(runs: Sequence[FoundRun]) -> list[Group]:
    """The groups of the usable ones, largest first; of equal ones, that of the newest run."""
    # Two paths may hold one base; a run that does not know its base's digest goes by the path.
    digests = {run.base: run.base_sha256 for run in runs if run.base and run.base_sha256}
    groups: dict[tuple[object, ...], list[FoundRun]] = defaultdict(list)
    for run in runs:
        if run.problem is None:
            base = run.base_sha256 or digests.get(str(run.base)) or _pinned(run.base)
            shape = tuple(sorted(run.shape.items()))
            groups[(run.architectures, shape, run.quantisation, base)].append(run)
    largest_first = sorted(groups.values(), key=len, reverse=True)
    return [
        Group(
            members[0].architectures,
            _most_exact([member.base for member in members if member.base]),
            tuple(members),
            _difference(largest_first[0][0], members[0]) if i else None,
        )
        for i, members in enumerate(largest_first)
    ]


def _difference(reference: FoundRun, other: FoundRun) -> str:
    if reference.architectures != other.architectures:
        return (
            f"is {_words(other.architectures)}, the largest group is "
            f"{_words(reference.architectures)}"
        )
    for key in sorted({*reference.shape, *other.shape}):
        ours, theirs = reference.shape.get(key), other.shape.get(key)
        if ours != theirs:
            return f"has {key} {theirs}, the largest group {ours}"
    if reference.quantisation != other.quantisation:
        return (
            f"holds {other.quantisation or 'plain'} weights, the largest group "
            f"{reference.quantisation or 'plain'} ones"
        )
    if reference.base == other.base:
        return (
            f"was trained on other weights in {other.base} (sha256 "
            f"{str(other.base_sha256)[:12]}, the largest group {str(reference.base_sha256)[:12]})"
        )
    return f"was trained on {other.base or 'no base'}, the largest group on {reference.base}"


def _pinned(base: str | None) -> str | None:
    """A hub id by its commit, where this machine knows it: main and a commit may be one base."""
    if base is None or Path(base).is_absolute() or not is_hub_name(base):
        return base
    return pinned_name(base)


def _most_exact(bases: Sequence[str]) -> str | None:
    """Of several names of one base: a directory that is there, else one with a revision."""
    return min(bases, key=lambda base: (not Path(base).is_dir(), "@" not in base), default=None)


def _words(architectures: tuple[str, ...]) -> str:
    return ", ".join(architectures) or "of unknown architecture"
