"""The tokens of one input, from its tokenizer.json, and its tensors with a row for each of them.

Such a tensor is known by its name, or by what transformers says of the model, and by a number of
rows that is the vocabulary's: one that only happens to be of that size is none.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.architectures import read_fit, token_rows
from mergeops.checkpoint import FLOATS, StoredTensor, TokenizerFile, read_json, read_small
from mergeops.errors import MergeError, SourceError

_INPUT = re.compile(
    r"(^|\.)(embed_tokens|wte|shared|word_embeddings|tok_embeddings|embed_in|embeddings)\.weight$"
)
_OUTPUT = re.compile(
    r"(^|\.)(lm_head|lm_head\.decoder|embed_out|proj_out|vocab_projector|generator_lm_head"
    r"|predictions\.decoder)\.(weight|bias)$"
    r"|(^|\.)predictions\.bias$|(^|\.)final_logits_bias$"
    r"|^(model\.)?output\.weight$"
)
_SPECIAL = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ROOM = 2**20
"""Ids that any tokenizer may use, and a larger one in proportion: rows are laid out for each."""
_PER_TOKEN = 16


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
        SourceError: a file is no JSON, or an entry is no token with an id that can be.
        MergeError: it has no vocabulary.
    """
    file = directory / TokenizerFile.TOKENIZER
    content = read_json(file)
    model = content.get("model")
    if not isinstance(model, dict):
        model = {}
    tokens: Any = model.get("vocab")
    if not isinstance(tokens, dict | list):
        raise MergeError(f"{file} has no vocabulary")
    config = directory / TokenizerFile.CONFIG
    described = read_json(config) if config.is_file() else {}
    added_tokens = _listed(file, content, "added_tokens", list)
    decoder = _listed(config, described, "added_tokens_decoder", dict)
    most = max(_ROOM, _PER_TOKEN * (len(tokens) + len(added_tokens) + len(decoder)))
    if isinstance(tokens, dict):
        ids = tokens
        if not _are_ids(tokens, most):
            # Which of them is wrong.
            for token, i in tokens.items():
                _text(file, "a token of model.vocab", token)
                _id(file, "model.vocab", i, most, token)
    else:
        # Unigram: a list of [token, score], the id being the position.
        ids = {_piece(file, i, entry): i for i, entry in enumerate(tokens)}
    added = {}
    for i, token in enumerate(added_tokens):
        text = _content(file, f"added_tokens[{i}]", token)
        added[text] = {
            **token,
            "id": _id(file, f"added_tokens[{i}].id", token.get("id"), most),
        }
    for number, token in decoder.items():
        text = _content(config, f"added_tokens_decoder[{_shown(number)}]", token)
        is_number = number.isdecimal() and len(number) < 20
        place = _id(
            config, "a key of added_tokens_decoder", int(number) if is_number else number, most
        )
        if text not in added and text not in ids:
            added[text] = {**token, "id": place}
    ids |= {token: said["id"] for token, said in added.items()}
    kind = model.get("type") or ("Unigram" if isinstance(tokens, list) else "BPE")
    return Vocabulary(file, str(kind), ids, added)


def check_settings(file: Path) -> None:
    """Hold a tokenizer_config.json against the types that every tokenizer has.

    Raises:
        SourceError: it is no JSON, or a value has another type.
    """
    content = read_json(file)
    kind = content.get("tokenizer_class")
    if not isinstance(kind, str | None):
        raise _wrong(file, "tokenizer_class", kind, "the name of a class")
    for key in _SPECIAL:
        token = content.get(key)
        if isinstance(token, dict) and token.get("__type") == "AddedToken":
            _content(file, key, token)
        elif token is not None:
            _text(file, key, token)
    for number, token in _listed(file, content, "added_tokens_decoder", dict).items():
        _content(file, f"added_tokens_decoder[{_shown(number)}]", token)


def _are_ids(tokens: Mapping[str, Any], most: int) -> bool:
    """Whether all are texts with ids, looked at in a fraction of the time of one by one."""
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError:
        return False
    return all(type(i) is int for i in tokens.values()) and (
        not tokens or (min(tokens.values()) >= 0 and max(tokens.values()) < most)
    )


def _listed(file: Path, content: Mapping[str, Any], key: str, kind: type[Any]) -> Any:
    value = content.get(key)
    if value is not None and not isinstance(value, kind):
        allowed = "a list" if kind is list else "an object with ids as its keys"
        raise _wrong(file, key, value, allowed)
    return value or kind()


def _content(file: Path, where: str, token: Any) -> str:
    if not isinstance(token, dict):
        raise _wrong(file, where, token, "an object with a content")
    for flag in _FLAGS:
        if not isinstance(token.get(flag, False), bool):
            raise _wrong(file, f"{where}.{flag}", token[flag], "true or false")
    return _text(file, f"{where}.content", token.get("content"))


def _piece(file: Path, number: int, entry: Any) -> str:
    if not isinstance(entry, list) or len(entry) != 2:
        raise _wrong(file, f"model.vocab[{number}]", entry, "a pair of a token and its score")
    return _text(file, f"the token of model.vocab[{number}]", entry[0])


def _text(file: Path, where: str, token: Any) -> str:
    try:
        if isinstance(token, str):
            token.encode()
            return token
    except UnicodeEncodeError:
        # Half of a UTF-16 pair, which JSON can write and no tokenizer can hold.
        pass
    raise _wrong(file, where, token, "a text")


def _id(file: Path, where: str, value: Any, most: int, key: str | None = None) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < most:
        return value
    place = where if key is None else f"{where}[{_shown(key)}]"
    raise _wrong(file, place, value, f"a whole number from 0 to {most - 1}")


def _wrong(file: Path, where: str, value: Any, allowed: str) -> SourceError:
    return SourceError(f"{file}: {where} is {_shown(value)}; allowed is {allowed}")


def _shown(value: Any) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def why_not_read(directory: Path) -> str | None:
    """Why the library tokenizers cannot read a directory's tokenizer.json; None where it can."""
    return _why_not_read(read_small(directory / TokenizerFile.TOKENIZER))


# A search plans many merges of the same tokenizer.
@functools.lru_cache(maxsize=2)
def _why_not_read(content: bytes) -> str | None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_buffer(content)
    except BaseException as error:
        # A panic of Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return " ".join(str(error).split())[:200]
    return None


def sizes_in(config: Mapping[str, Any]) -> Iterator[int]:
    """Every ``vocab_size`` of a config.json: its own, then those of the models inside."""
    size = config.get("vocab_size")
    if isinstance(size, int) and not isinstance(size, bool):
        yield size
    for value in config.values():
        if isinstance(value, Mapping):
            yield from sizes_in(value)


def names_token_rows(tensor: str) -> bool:
    """Whether a tensor is an embedding or a head by its name."""
    return (_INPUT.search(tensor) or _OUTPUT.search(tensor)) is not None


def embedding_tensors(
    name: str, tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> tuple[int, list[str], list[str]]:
    """The number of rows of an input's vocabulary, the tensors that have so many, and those that
    transformers knows to have a row for each token, and which have another number.

    Raises:
        MergeError: no tensor looks like an embedding.
    """
    fit = read_fit(config, {n: t.shape for n, t in tensors.items()})
    known = [] if fit is None else [n for n, p in fit.in_memory().items() if p in fit.vocabulary]
    found = [
        n
        for n, t in tensors.items()
        if _is_rows(t) and (n in known or _INPUT.search(n) or _OUTPUT.search(n))
    ]
    if not found:
        raise MergeError(
            f"{name} has no tensor that looks like an embedding (embed_tokens, wte, shared, "
            "word_embeddings, ...); its rows cannot be matched by token, leave tokenizer.source out"
        )
    sizes = {n: token_rows(tensors[n].shape) for n in found}
    # A config may be older than the last resize, the tensors are not.
    named = [size for size in sizes_in(config) if size in sizes.values()]
    first = next((n for n in found if _INPUT.search(n)), found[0])
    rows = named[0] if named else sizes[first]
    others = [n for n in found if n in known and sizes[n] != rows]
    return rows, [n for n in found if sizes[n] == rows], others


def _is_rows(tensor: StoredTensor) -> bool:
    return tensor.dtype in FLOATS and len(tensor.shape) in (1, 2) and tensor.shape[0] > 0
