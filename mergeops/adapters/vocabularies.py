"""Embeddings and head under an adapter: do they stay one tensor, and how many rows have they?

PEFT adapts the two apart, also where the base ties them (unless ensure_weight_tying says else): the
embeddings of modules_to_save are trained, the head keeps the base's values. Such a model has a head
of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.adapters.adapter_config import AdapterConfig
from mergeops.adapters.base_names import (
    BaseNames,
    vocabulary_change,
)
from mergeops.adapters.weight_changes import (
    Change,
    LowRank,
    TensorOrigin,
    TokenRows,
    ZeroEnd,
)
from mergeops.architectures import tied_setting, token_rows
from mergeops.checkpoint import Checkpoint, CheckpointReader, StoredTensor, read_tensor
from mergeops.errors import SourceError


@dataclass(frozen=True)
class SettledVocabulary:
    """What becomes of embeddings and head."""

    tensors: dict[str, StoredTensor]
    """Those of base and adapter together."""
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
    touched = origins.keys() | changes.keys()
    if not any(map(names.is_vocabulary, touched)):
        return SettledVocabulary(_together(names, own, origins), origins, changes, {}, ())
    notes = []
    settings: dict[str, Any] = {}
    apart = {
        name: first
        for name, first in names.tied.items()
        if {name, first} & touched
        and not _stays_tied(config, names, own, (name, first), origins, changes)
    }
    for name, first in names.tied.items():
        if first in touched and name not in apart:
            _check_bias(names, config, name, changes.get(first))
    if apart:
        _part(names, apart, origins, changes)
        settings |= tied_setting(names.config, False)
        listed = ", ".join(sorted(apart))
        notes.append(
            f"{config.shown} adapts {listed} and {', '.join(sorted(set(apart.values())))} apart, "
            "which its base ties; together they are a model that ties nothing"
        )
    else:
        _join(names, origins, changes)
    tensors = _together(names, own, origins)
    sizes = {name: token_rows(t.shape) for name, t in tensors.items() if names.is_vocabulary(name)}
    before = {
        name: token_rows(names.base.tensors[names.tied.get(name, name)].shape) for name in sizes
    }
    if sizes != before:
        rows = max(sizes.values())
        for name in sizes.keys() - touched:
            # transformers adds zeros to BART's final_logits_bias, [1, tokens].
            if tensors[name].shape[:1] == (1,) and sizes[name] < rows:
                tensors[name] = dataclasses.replace(tensors[name], shape=(1, rows))
                changes[name], sizes[name] = ZeroEnd(), rows
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {n}" for name, n in sorted(sizes.items()))
            raise SourceError(
                f"{config.shown}: embeddings and head have different numbers of rows with this "
                f"adapter: {listed}; its file lacks the rows of some; save its base from the "
                "trained model by unload().save_pretrained(NEW_DIR), and set the source's base to "
                "NEW_DIR"
            )
        settings |= vocabulary_change(names.config, max(before.values()), rows)
    return SettledVocabulary(tensors, origins, changes, settings, tuple(notes))


def _together(
    names: BaseNames, own: Checkpoint, origins: Mapping[str, TensorOrigin]
) -> dict[str, StoredTensor]:
    tensors = dict(names.base.tensors)
    for name, origin in origins.items():
        source = own if origin.own else names.base
        tensors[name] = dataclasses.replace(source.tensors[origin.key], name=name)
    return tensors


def _check_bias(names: BaseNames, config: AdapterConfig, name: str, change: Change | None) -> None:
    bias = f"{name.removesuffix('.weight')}.bias"
    is_copied = change is None and config.content.get("ensure_weight_tying")
    if (isinstance(change, TokenRows) or is_copied) and names.has(bias):
        raise SourceError(
            f"{config.shown}: PEFT ties {name} to embeddings that it trains, and computes without "
            f"{bias} then: base and adapter are another model in training than together; train it "
            "again with modules_to_save of both and without ensure_weight_tying"
        )


def _part(
    names: BaseNames,
    apart: Mapping[str, str],
    origins: dict[str, TensorOrigin],
    changes: dict[str, Change],
) -> None:
    """Give every tensor that the base ties its own values: config.json ties all or none."""
    touched = origins.keys() | changes.keys()
    for name, first in names.tied.items():
        if name in touched:
            if name not in apart and first not in touched:
                origins[first] = origins[name]
            continue
        if name in apart:
            # What the other was before it was trained, is in the file where rows were added.
            origin = origins.get(first, TensorOrigin(first))
            if first not in changes:
                untrained = origin.untrained
                origin = TensorOrigin(untrained or first, own=untrained is not None)
            origins[name] = origin
            continue
        origins[name] = origins.get(first, TensorOrigin(first))
        if first in changes:
            changes[name] = changes[first]


def _join(names: BaseNames, origins: dict[str, TensorOrigin], changes: dict[str, Change]) -> None:
    """Leave of tensors that stay one the first."""
    touched = origins.keys() | changes.keys()
    for name, first in names.tied.items():
        origin, change = origins.pop(name, None), changes.pop(name, None)
        if first in touched:
            continue
        if origin is not None:
            origins[first] = origin
        if change is not None:
            changes[first] = change


def _stays_tied(
    config: AdapterConfig,
    names: BaseNames,
    own: Checkpoint,
    pair: tuple[str, str],
    origins: Mapping[str, TensorOrigin],
    changes: Mapping[str, Change],
) -> bool:
    """Whether two tensors that the base ties have one value with the adapter, too, by what is in
    its file: PEFT does not tie all that ensure_weight_tying asks for."""
    head, embeddings = pair
    ours, theirs = origins.get(embeddings), origins.get(head)
    of_ours, of_theirs = changes.get(embeddings), changes.get(head)
    rows = [(n, c) for n in (embeddings, head) if isinstance(c := changes.get(n), TokenRows)]
    if rows and isinstance(of_ours, TokenRows | None) and isinstance(of_theirs, TokenRows | None):
        # PEFT ties the rows of tokens of the input embeddings with the head's.
        tied = names.is_input(rows[0][0]) if len(rows) == 1 else _are_same_rows(own, *rows)
        return tied and _are_same_copies(own, ours, theirs)
    if isinstance(of_ours, LowRank) and isinstance(of_theirs, LowRank):
        return _are_one_product(own, of_ours, of_theirs) and _are_same_copies(own, ours, theirs)
    if of_ours or of_theirs:
        return False
    copies = [(name, at) for name, at in ((embeddings, ours), (head, theirs)) if at and at.own]
    if len(copies) == 1:
        # A copy that PEFT saved, e.g. of a vocabulary that grew, and no module of its own.
        module = copies[0][0].rpartition(".")[0]
        trained = config.setting("modules_to_save", [])
        trained = [trained] if isinstance(trained, str) else trained
        return not any(module == name or module.endswith(f".{name}") for name in trained)
    return bool(copies) and _are_same_copies(own, ours, theirs)


def _are_same_copies(own: Checkpoint, one: TensorOrigin | None, other: TensorOrigin | None) -> bool:
    keys = [origin.key for origin in (one, other) if origin is not None and origin.own]
    return len(keys) < 2 or _are_equal(own, (keys[0], keys[1]))


def _are_same_rows(own: Checkpoint, *named: tuple[str, TokenRows]) -> bool:
    one, other = (rows for _, rows in named)
    return one.tokens == other.tokens and _are_equal(own, (one.key, other.key))


def _are_one_product(own: Checkpoint, one: LowRank, other: LowRank) -> bool:
    """Whether (B A) transposed of the embeddings is the head's B A, factor by factor."""
    if one.scale != other.scale or one.turned is other.turned:
        return False
    return _are_equal(own, (one.a, other.b), (one.b, other.a), turned=True)


def _are_equal(own: Checkpoint, *pairs: tuple[str, str], turned: bool = False) -> bool:
    reader = CheckpointReader(own)
    try:
        for first, second in pairs:
            other = read_tensor(reader, second)
            if not read_tensor(reader, first).equal(other.T if turned else other):
                return False
        return True
    finally:
        reader.close()
