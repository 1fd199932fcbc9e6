"""The tokens of one input, from its tokenizer.json, and its tensors with a row for each of them.

Such a tensor is known by its name and by a first dimension that is the vocabulary's: one that only
happens to be of that size is none, and neither is one of the right name and another size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.checkpoint import FLOATS, StoredTensor, TokenizerFile, read_json
from mergeops.errors import MergeError

_INPUT = re.compile(
    r"(^|\.)(embed_tokens|wte|shared|word_embeddings|tok_embeddings|embed_in|embeddings)\.weight$"
)
_OUTPUT = re.compile(
    r"(^|\.)(lm_head|lm_head\.decoder|embed_out|proj_out|vocab_projector|generator_lm_head"
    r"|predictions\.decoder)\.(weight|bias)$"
    r"|(^|\.)predictions\.bias$"
    r"|^(model\.)?output\.weight$"
)


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


def has_vocabulary(directory: Path) -> bool:
    """Whether ``read_vocabulary`` can be asked for a directory."""
    return (directory / TokenizerFile.TOKENIZER).is_file()


def read_vocabulary(directory: Path) -> Vocabulary:
    """Read a directory's tokenizer.json, and what its tokenizer_config.json adds.

    Raises:
        SourceError: a file is no JSON.
        MergeError: it has no vocabulary.
    """
    file = directory / TokenizerFile.TOKENIZER
    content = read_json(file)
    model = content.get("model")
    if not isinstance(model, dict):
        model = {}
    tokens: Any = model.get("vocab")
    if isinstance(tokens, dict):
        ids = dict(tokens)
    elif isinstance(tokens, list):
        # Unigram: a list of [token, score], the id being the position.
        ids = {str(entry[0]): i for i, entry in enumerate(tokens)}
    else:
        raise MergeError(f"{file} has no vocabulary")
    added = {str(token["content"]): token for token in content.get("added_tokens") or []}
    config = directory / TokenizerFile.CONFIG
    decoder = read_json(config).get("added_tokens_decoder") if config.is_file() else None
    for number, token in (decoder or {}).items():
        if token["content"] not in added and token["content"] not in ids:
            added[str(token["content"])] = {"id": int(number), **token}
    ids |= {token: int(described["id"]) for token, described in added.items()}
    kind = model.get("type") or ("Unigram" if isinstance(tokens, list) else "BPE")
    return Vocabulary(file, str(kind), ids, added)


def sizes_in(config: Mapping[str, Any]) -> Iterator[int]:
    """Every ``vocab_size`` of a config.json: its own, then those of the models inside."""
    size = config.get("vocab_size")
    if isinstance(size, int) and not isinstance(size, bool):
        yield size
    for value in config.values():
        if isinstance(value, Mapping):
            yield from sizes_in(value)


def embedding_tensors(
    name: str, tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> tuple[int, list[str]]:
    """The number of rows of an input's vocabulary, and the tensors that have so many.

    Raises:
        MergeError: no tensor looks like an embedding.
    """
    inputs = [n for n, t in tensors.items() if _INPUT.search(n) and _is_rows(t)]
    outputs = [n for n, t in tensors.items() if _OUTPUT.search(n) and _is_rows(t)]
    if not inputs and not outputs:
        raise MergeError(
            f"{name} has no tensor that looks like an embedding (embed_tokens, wte, shared, "
            "word_embeddings, ...); its rows cannot be matched by token, leave tokenizer.source out"
        )
    sizes = {tensors[tensor].shape[0] for tensor in [*inputs, *outputs]}
    # A config may be older than the last resize, the tensors are not.
    named = [size for size in sizes_in(config) if size in sizes]
    rows = named[0] if named else tensors[[*inputs, *outputs][0]].shape[0]
    return rows, [n for n in [*inputs, *outputs] if tensors[n].shape[0] == rows]


def _is_rows(tensor: StoredTensor) -> bool:
    return tensor.dtype in FLOATS and len(tensor.shape) in (1, 2) and tensor.shape[0] > 0
