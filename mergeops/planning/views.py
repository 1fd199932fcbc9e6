"""Views: the tensors of every input by the name that they have in the result.

Inputs may differ in tensors that mean nothing (buffers that the model computes itself) and in how
they hold the output head: as a tensor of its own, or tied to the embeddings.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mergeops.architectures import read_fit, tied_setting
from mergeops.checkpoint import StoredTensor
from mergeops.errors import MergeError

View = Mapping[str, StoredTensor]
"""Name in the result -> tensor of the input, which may have another name there."""

HEADS = ("lm_head.weight", "embed_out.weight", "model.lm_head.weight")
# Recomputed by every model that has them; old checkpoints carry them.
_COMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|attn\.masked_bias)$")
_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")
_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|shared|embed_in)\.weight$")


@dataclasses.dataclass(frozen=True)
class Views:
    """What the inputs look like to the merge."""

    inputs: dict[str, View]
    config: Mapping[str, Any]
    """What that changes in config.json."""
    warnings: tuple[str, ...]


def see(
    headers: Mapping[str, View], tied_head: str, configs: Mapping[str, Mapping[str, Any]]
) -> Views:
    """Leave out what some inputs lack and no model needs, and settle which have an output head.

    Args:
        headers: input -> its tensors, by their names in the result.
        tied_head: what the recipe says: refuse, untie or tie.
        configs: input -> its config.json; the first's is the result's.

    Raises:
        MergeError: only some have an output head, and the recipe does not say what to do.
    """
    views, warnings = _without_computed(headers)
    config = next(iter(configs.values()))
    heads = _heads(views, configs)
    if not heads:
        return Views(views, {}, tuple(warnings))
    shown = ", ".join(heads)
    have = [name for name, view in views.items() if heads.keys() <= view.keys()]
    lack = [name for name in views if name not in have]
    if tied_head == "refuse":
        size = sum(views[have[0]][head].stop - views[have[0]][head].start for head in heads)
        raise MergeError(
            f"{shown} is in {', '.join(have)} but not in {', '.join(lack)}: one ties its output "
            "head to the embeddings and the other does not; set tied_head=untie to give the merge "
            f"a head of its own ({size / 1e6:.1f} MB more, exact), or "
            f"tied_head=tie to drop that of {', '.join(have)}"
        )
    if tied_head == "tie":
        return Views(
            {n: {t: s for t, s in view.items() if t not in heads} for n, view in views.items()},
            tied_setting(config, True),
            (*warnings, f"the head of {', '.join(have)} is dropped: the merge ties {shown}"),
        )
    seen: dict[str, View] = {}
    for name, view in views.items():
        own = {h: _source(name, view, ties) for h, ties in heads.items() if h not in view}
        seen[name] = {**view, **own}
    told = f"{', '.join(lack)} tied {shown} to the embeddings; the merge has a head of its own"
    return Views(seen, tied_setting(config, False), (*warnings, told))


def _heads(
    views: Mapping[str, View], configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, str]]:
    """Tensors that some inputs have and all others tie: head -> input without it -> the tensor
    that it is the same as there, where transformers says so."""
    every = {tensor for view in views.values() for tensor in view}
    lacking = {tensor for tensor in every if any(tensor not in view for view in views.values())}
    named = [head for head in HEADS if head in lacking]
    without = [view for view in views.values() if lacking - view.keys()]
    if named and all(len(_candidates(view)) == 1 for view in without):
        # What transformers knows is asked only where names do not tell: importing it takes seconds.
        return {named[0]: {}} if len(named) == 1 else {}
    found: dict[str, dict[str, str]] = {}
    for name, view in views.items():
        absent = lacking - view.keys()
        shapes = {tensor: stored.shape for tensor, stored in view.items()}
        fit = read_fit(configs[name], shapes) if absent and configs[name] else None
        for tensor, first in {} if fit is None else fit.tied_on_disk().items():
            if tensor in absent:
                found.setdefault(tensor, {})[name] = first
    whole = {h: t for h, t in found.items() if all(h in v or n in t for n, v in views.items())}
    is_one = len({tuple(ties) for ties in whole.values()}) == 1
    return whole if is_one else {head: {} for head in named[:1]}


def _source(name: str, view: View, ties: Mapping[str, str]) -> StoredTensor:
    return view[ties[name]] if name in ties else _embeddings(name, view)


def _without_computed(headers: Mapping[str, View]) -> tuple[dict[str, View], list[str]]:
    everywhere = set.intersection(*(set(view) for view in headers.values()))
    dropped: set[str] = set()
    for view in headers.values():
        for name, stored in view.items():
            is_mask = bool(_MASK.search(name)) and len(stored.shape) == 4
            if name not in everywhere and (is_mask or _COMPUTED.search(name)):
                dropped.add(name)
    if not dropped:
        return dict(headers), []
    views: dict[str, View] = {
        name: {t: s for t, s in view.items() if t not in dropped} for name, view in headers.items()
    }
    return views, [
        f"{len(dropped)} buffer(s) that not all inputs have are left out, since models compute "
        f"them, e.g. {min(dropped)}"
    ]


def _candidates(view: View) -> Sequence[StoredTensor]:
    return [stored for tensor, stored in view.items() if _EMBEDDINGS.search(tensor)]


def _embeddings(name: str, view: View) -> StoredTensor:
    candidates = _candidates(view)
    if len(candidates) != 1:
        raise MergeError(
            f"{name} has no output head, and {len(candidates)} tensors that may be its embeddings; "
            "save it with a head of its own"
        )
    return candidates[0]
