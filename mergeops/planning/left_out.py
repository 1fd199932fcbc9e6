"""What ``missing=leave_out`` changes: tensors that some inputs lack, counted and named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergeops.errors import MergeError
from mergeops.planning.architecture import layer_of
from mergeops.planning.pieces import Piece
from mergeops.planning.views import View

LEAST = 0.5
"""So much of the smallest input must be in all others."""


def check_left_out(pieces: Sequence[Piece], views: Mapping[str, View]) -> list[str]:
    """Say which tensors come from some inputs only.

    Args:
        pieces: the tensors of the result.
        views: each input's tensors.

    Raises:
        MergeError: the inputs have hardly anything in common, so that most of the result would be
            tensors that nothing was merged with.
    """
    some: dict[tuple[str, ...], list[str]] = {}
    for piece in pieces:
        have = tuple(name for name, view in views.items() if piece.name in view)
        if len(have) < len(views):
            some.setdefault(have, []).append(piece.name)
    alone = sum(map(len, some.values()))
    common, smallest = len(pieces) - alone, min(len(view) for view in views.values())
    if common < LEAST * smallest:
        examples = "; ".join(
            f"{names[0]} only in {', '.join(have)}" for have, names in some.items()
        )
        raise MergeError(
            f"only {common} of {smallest} tensors are in all of {', '.join(views)}: {examples}; "
            "missing=leave_out would put the others beside each other unmerged: save the inputs "
            "with the same class and version of transformers first, so that their names agree"
        )
    return [
        f"missing=leave_out: {len(names)} of {len(pieces)} tensors come from {', '.join(have)} "
        f"only{_layers(names)}, e.g. {', '.join(names[:3])}"
        for have, names in some.items()
    ]


def _layers(names: Sequence[str]) -> str:
    numbers = sorted({place[1] for name in names if (place := layer_of(name))})
    if not numbers:
        return ""
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f" (in layers {shown})"
