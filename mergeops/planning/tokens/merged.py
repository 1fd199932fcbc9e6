"""The tokens of the result: one input's, and those that others or the recipe add behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops.errors import MergeError
from mergeops.planning.tokens.vocabulary import Vocabulary

_PLAIN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": False,
}


@dataclass(frozen=True)
class NewToken:
    """A token that the tokenizer's own files do not have yet."""

    content: str
    id: int
    flags: Mapping[str, Any] = field(default_factory=dict)
    """How tokenizer.json describes an added token; empty for one of the model's own vocabulary,
    which is found by its merges only."""


def merge_vocabularies(
    first: Vocabulary,
    others: Mapping[str, Vocabulary],
    wanted: Iterable[str],
    *,
    union: bool,
) -> tuple[dict[str, int], tuple[NewToken, ...]]:
    """Token -> id of the result, and which of them are new to ``first``'s files.

    Ids of ``first``, whose tokenizer the result gets, never change. New tokens come behind them:
    for a union, input by input, in the order of the input's ids; then those that the recipe wants.

    Raises:
        MergeError: a union of Unigram models that differ in more than added tokens.
    """
    ids = dict(first.ids)
    following = max(ids.values(), default=-1) + 1
    new: list[NewToken] = []

    def add(token: str, flags: Mapping[str, Any]) -> None:
        new.append(NewToken(token, following + len(new), flags))
        ids[token] = new[-1].id

    for name, other in others.items() if union else ():
        missing = sorted((i, token) for token, i in other.ids.items() if token not in ids)
        if first.kind == "Unigram":
            _check_unigram(name, [token for _, token in missing if token not in other.added])
        for _, token in missing:
            add(token, _flags(other, token) if token in other.added else {})
    for token in wanted:
        if token not in ids:
            knows = next((v for v in others.values() if token in v.added), None)
            add(token, _flags(knows, token) if knows else _PLAIN)
    return ids, tuple(new)


def _flags(vocabulary: Vocabulary, token: str) -> dict[str, Any]:
    described = vocabulary.added[token]
    return {key: bool(described.get(key, plain)) for key, plain in _PLAIN.items()}


def _check_unigram(name: str, tokens: list[str]) -> None:
    if tokens:
        raise MergeError(
            f"{name} has {len(tokens)} token(s) in its Unigram model that the base's model lacks, "
            f"e.g. {tokens[0]!r}; a union can only add tokens beside such a model: set "
            "tokenizer.source to base or to a source's name"
        )
