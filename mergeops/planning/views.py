"""Views: the tensors of every input by the name that they have in the result.

Inputs may differ in tensors that mean nothing (buffers that the model computes itself) and in how
they hold the output head: as a tensor of its own, or tied to the embeddings.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mergeops.architectures import tied_setting
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


def see(headers: Mapping[str, View], tied_head: str, config: Mapping[str, Any]) -> Views:
    """Leave out what some inputs lack and no model needs, and settle which have an output head.

    Raises:
        MergeError: only some have an output head, and the recipe does not say what to do.
    """
    views, warnings = _without_computed(headers)
    heads = [head for head in HEADS if any(head in view for view in views.values())]
    if len(heads) != 1 or all(heads[0] in view for view in views.values()):
        return Views(views, {}, tuple(warnings))
    (head,) = heads
    have = [name for name, view in views.items() if head in view]
    lack = [name for name, view in views.items() if head not in view]
    if tied_head == "refuse":
        stored = views[have[0]][head]
        raise MergeError(
            f"{head} is in {', '.join(have)} but not in {', '.join(lack)}: one ties its output "
            "head to the embeddings and the other does not; set tied_head=untie to give the merge "
            f"a head of its own ({(stored.stop - stored.start) / 1e6:.1f} MB more, exact), or "
            f"tied_head=tie to drop that of {', '.join(have)}"
        )
    if tied_head == "tie":
        return Views(
            {name: {t: s for t, s in view.items() if t != head} for name, view in views.items()},
            tied_setting(config, True),
            (*warnings, f"the head of {', '.join(have)} is dropped: the merge ties {head}"),
        )
    seen = {}
    for name, view in views.items():
        seen[name] = view if name in have else {**view, head: _embeddings(name, view)}
    told = f"{', '.join(lack)} tied {head} to the embeddings; the merge has a head of its own"
    return Views(seen, tied_setting(config, False), (*warnings, told))


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


def _embeddings(name: str, view: View) -> StoredTensor:
    candidates: Sequence[StoredTensor] = [s for t, s in view.items() if _EMBEDDINGS.search(t)]
    if len(candidates) != 1:
        raise MergeError(
            f"{name} has no output head, and {len(candidates)} tensors that may be its embeddings; "
            "save it with a head of its own"
        )
    return candidates[0]
