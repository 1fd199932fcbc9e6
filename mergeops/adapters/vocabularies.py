"""Embeddings and head under an adapter: do they stay one tensor, and how many rows have they?

PEFT adapts the two apart, also where the base ties them (unless ensure_weight_tying says else): the
embeddings of modules_to_save are trained, the head keeps the base's values. Such a model has a head
of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.adapters.adapter_config import AdapterConfig
from mergeops.adapters.base_names import (
    EMBEDDINGS,
    HEAD_ENDINGS,
    BaseNames,
    untied_change,
    vocabulary_change,
)
from mergeops.adapters.weight_changes import Change, TensorOrigin, TokenRows
from mergeops.checkpoint import Checkpoint, CheckpointReader, read_tensor
from mergeops.errors import SourceError


@dataclass(frozen=True)
class SettledVocabulary:
    """What becomes of embeddings and head."""

    origins: Mapping[str, TensorOrigin]
    changes: Mapping[str, Change]
    config_changes: Mapping[str, Any]
    notes: tuple[str, ...]


def settle_vocabulary(
    names: BaseNames,
    config: AdapterConfig,
    own: Checkpoint,
    origins: Mapping[str, TensorOrigin],
    changes: Mapping[str, Change],
) -> SettledVocabulary:
    """Decide whether a tied head stays tied, and say what config.json needs.

    Args:
        names: the base.
        config: the adapter's.
        own: the adapter's headers.
        origins: tensors of the base that come from elsewhere.
        changes: tensors of the base that are changed.

    Raises:
        SourceError: embeddings and head would have different numbers of rows.
    """
    origins, changes = dict(origins), dict(changes)
    notes = []
    settings: dict[str, Any] = {}
    touched = origins.keys() | changes.keys()
    if not any(EMBEDDINGS.search(name) or name.endswith(HEAD_ENDINGS) for name in touched):
        return SettledVocabulary(origins, changes, {}, ())
    for head, embeddings in names.tied.items():
        if not {head, embeddings} & touched:
            continue
        if _stays_tied(config, own, head, embeddings, origins, changes):
            if embeddings not in touched:
                origins[embeddings] = origins[head]
            origins.pop(head, None)
            changes.pop(head, None)
            continue
        if head not in touched:
            origins[head] = TensorOrigin(embeddings)
        settings |= untied_change(names.config)
        notes.append(
            f"{config.shown} adapts {head} and {embeddings} apart, which its base ties; together "
            "they are a model with a head of its own"
        )
    rows = {
        name: own.tensors[origin.key].shape[0] if origin.own else names.tensors[origin.key].shape[0]
        for name, origin in origins.items()
        if EMBEDDINGS.search(name) or name.endswith(HEAD_ENDINGS)
    }
    grown = {
        name: n for name, n in rows.items() if n != names.tensors[_known(names, name)].shape[0]
    }
    if grown:
        ours = {*names.base.tensors, *origins}
        sizes = {
            name: rows.get(name, names.tensors[name].shape[0])
            for name in ours
            if EMBEDDINGS.search(name) or name.endswith(HEAD_ENDINGS)
        }
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {n}" for name, n in sorted(sizes.items()))
            raise SourceError(
                f"{config.shown}: embeddings and head have different numbers of rows with this "
                f"adapter: {listed}; save it again with save_embedding_layers=True"
            )
        settings |= vocabulary_change(names.config, max(grown.values()))
    return SettledVocabulary(origins, changes, settings, tuple(notes))


def _known(names: BaseNames, name: str) -> str:
    return name if name in names.tensors else names.tied[name]


def _stays_tied(
    config: AdapterConfig,
    own: Checkpoint,
    head: str,
    embeddings: str,
    origins: Mapping[str, TensorOrigin],
    changes: Mapping[str, Change],
) -> bool:
    if config.content.get("ensure_weight_tying"):
        return True
    ours, theirs = origins.get(embeddings), origins.get(head)
    of_ours, of_theirs = changes.get(embeddings), changes.get(head)
    if isinstance(of_ours, TokenRows) and theirs is None:
        # PEFT ties the rows of tokens with the head.
        return of_theirs in (None, of_ours)
    if of_ours or of_theirs:
        return False
    if ours is None or not ours.own:
        return False
    if theirs is None:
        # A copy that PEFT saved, e.g. of a vocabulary that grew, and no module of its own.
        module = embeddings.removesuffix(".weight")
        trained = config.setting("modules_to_save", [])
        trained = [trained] if isinstance(trained, str) else trained
        return not any(module == name or module.endswith(f".{name}") for name in trained)
    if not theirs.own:
        return False
    reader = CheckpointReader(own)
    try:
        return bool(read_tensor(reader, ours.key).equal(read_tensor(reader, theirs.key)))
    finally:
        reader.close()
