"""The tokens of one input, read from its tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.checkpoint.layout import read_json
from mergeops.errors import MergeError

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Vocabulary:
    """Which token has which id, and which tokens were added to the tokenizer's model."""

    file: Path
    kind: str
    """BPE, WordPiece, WordLevel or Unigram."""
    ids: Mapping[str, int]
    """Token -> id, added tokens included."""
    added: Mapping[str, Mapping[str, Any]]
    """Added tokens as tokenizer.json describes them: content, id, special, lstrip, ..."""


def read_vocabulary(directory: Path) -> Vocabulary:
    """Read a directory's tokenizer.json, and what its tokenizer_config.json adds.

    Raises:
        SourceError: a file is no JSON.
        MergeError: it has no vocabulary.
    """
    file = directory / TOKENIZER
    content = read_json(file)
    model = content.get("model")
    if not isinstance(model, dict):
        model = {}
    found: Any = model.get("vocab")
    if isinstance(found, dict):
        ids = dict(found)
    elif isinstance(found, list):
        # Unigram: a list of [token, score], the id being the position.
        ids = {str(entry[0]): i for i, entry in enumerate(found)}
    else:
        raise MergeError(f"{file} has no vocabulary")
    added = {str(token["content"]): token for token in content.get("added_tokens") or []}
    config = directory / TOKENIZER_CONFIG
    decoder = read_json(config).get("added_tokens_decoder") if config.is_file() else None
    for number, token in (decoder or {}).items():
        if token["content"] not in added and token["content"] not in ids:
            added[str(token["content"])] = {"id": int(number), **token}
    ids |= {token: int(described["id"]) for token, described in added.items()}
    kind = model.get("type") or ("Unigram" if isinstance(found, list) else "BPE")
    return Vocabulary(file, str(kind), ids, added)
