"""The tokenizer's and the model's small files, changed to say what the merge's vocabulary is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergeops.architectures import VOCABULARY_SIZES
from mergeops.checkpoint import TokenizerFile
from mergeops.planning.tokens.merged import NewToken
from mergeops.planning.tokens.vocabulary_layout import VocabularyLayout

WITH_TOKENS = (
    TokenizerFile.TOKENIZER,
    TokenizerFile.CONFIG,
    TokenizerFile.ADDED_TOKENS,
    TokenizerFile.VOCABULARY,
)
"""Files that name tokens, and get new ones."""


def with_tokens(name: str, content: dict[str, Any], added: Sequence[NewToken]) -> dict[str, Any]:
    """One of ``WITH_TOKENS`` with new tokens in it, whose ids are behind all others."""
    beside = [token for token in added if token.flags]
    inside = [token for token in added if not token.flags]
    if name == TokenizerFile.TOKENIZER:
        return _tokenizer(content, beside, inside)
    if name == TokenizerFile.CONFIG:
        if "added_tokens_decoder" not in content:
            return content
        decoder = content["added_tokens_decoder"] or {}
        new = {str(token.id): {"content": token.content, **token.flags} for token in beside}
        return {**content, "added_tokens_decoder": {**decoder, **new}}
    tokens = inside if name == TokenizerFile.VOCABULARY else beside
    return {**content, **{token.content: token.id for token in tokens}}


def _tokenizer(
    content: dict[str, Any], beside: Sequence[NewToken], inside: Sequence[NewToken]
) -> dict[str, Any]:
    model = dict(content["model"])
    known = list(content.get("added_tokens") or [])
    if isinstance(model["vocab"], dict):
        # Readers number the tokens that the model does not know by themselves, so it gets all.
        model["vocab"] = {
            **model["vocab"],
            **{token["content"]: token["id"] for token in known},
            **{token.content: token.id for token in (*beside, *inside)},
        }
    new = [{"id": token.id, "content": token.content, **token.flags} for token in beside]
    return {**content, "model": model, "added_tokens": [*known, *new]}


def with_vocabulary(
    config: Mapping[str, Any], layout: VocabularyLayout, ids_from: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A config.json or generation_config.json that fits the merge's vocabulary.

    Args:
        config: what the file says now.
        layout: the merge's vocabulary.
        ids_from: the same file of the input whose tokenizer the merge has, where that is another.
    """
    changed = _resized(config, layout)
    if "vocab_size" in config and changed["vocab_size"] == config["vocab_size"]:
        changed["vocab_size"] = layout.rows
    return changed if ids_from is None else _with_ids(changed, ids_from)


def _resized(config: Mapping[str, Any], layout: VocabularyLayout) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            changed[key] = _resized(value, layout)
        elif key in VOCABULARY_SIZES and value == layout.old_rows:
            changed[key] = layout.rows
        else:
            changed[key] = value
    return changed


def _with_ids(config: Mapping[str, Any], ids_from: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            theirs = ids_from.get(key)
            changed[key] = _with_ids(value, theirs if isinstance(theirs, Mapping) else {})
        elif not key.endswith("_token_id"):
            changed[key] = value
    ids = {key: value for key, value in ids_from.items() if key.endswith("_token_id")}
    return {**changed, **ids}
