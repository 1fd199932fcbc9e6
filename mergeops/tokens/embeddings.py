"""Which tensors have a row for each token: input embeddings and output heads.

Decided by name, and by a first dimension that is the vocabulary's: a tensor that merely happens to
be of that size is none, and neither is one of the right name and another size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mergeops.checkpoint.dtypes import FLOATS
from mergeops.checkpoint.header import StoredTensor
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

    Args:
        name: the input, for messages.
        tensors: its headers.
        config: its config.json.

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
