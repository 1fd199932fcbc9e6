"""Which tokenizer the merge has, and whether all inputs mean the same by a token id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergeops.checkpoint.layout import read_json
from mergeops.errors import MergeError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
CHAT_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
# Any one of these makes a tokenizer.
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def tokenizer_directory(directories: Sequence[Path]) -> Path | None:
    """The first directory that holds a tokenizer."""
    for directory in directories:
        if any((directory / name).is_file() for name in _VOCABULARY_FILES):
            return directory
    return None


def chat_template_directory(directories: Sequence[Path]) -> Path | None:
    """The first directory that holds a chat template, in a file of its own or in the config."""
    for directory in directories:
        if any((directory / name).is_file() for name in CHAT_TEMPLATE_FILES):
            return directory
        config = directory / "tokenizer_config.json"
        if config.is_file() and read_json(config).get("chat_template"):
            return directory
    return None


def check_same_vocabulary(directories: Mapping[str, Path]) -> list[str]:
    """Compare every input's tokenizer.json with the first one's.

    Args:
        directories: name of the input -> where its tokenizer is; those without tokenizer.json are
            passed over.

    Returns:
        Warnings: tokens that only one of two inputs knows.

    Raises:
        MergeError: two inputs give one id to different tokens, or one token different ids.
    """
    files = {n: d / "tokenizer.json" for n, d in directories.items()}
    files = {name: file for name, file in files.items() if file.is_file()}
    if len(files) < 2:
        return []
    (first, file), *others = files.items()
    content = file.read_bytes()
    reference = vocabulary(file)
    warnings = []
    for name, other in others:
        if other.read_bytes() == content:
            continue
        theirs = vocabulary(other)
        _compare(first, reference, name, theirs)
        only = len(theirs.keys() ^ reference.keys())
        if only:
            warnings.append(
                f"{only} token(s) are known to only one of {first} and {name}; the merge has those "
                f"of {first}"
            )
    return warnings


def vocabulary(file: Path) -> dict[str, int]:
    """Token -> id of a tokenizer.json, added tokens included.

    Raises:
        MergeError: it has no vocabulary.
    """
    content = read_json(file)
    model = content.get("model")
    found: Any = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(found, dict):
        tokens = dict(found)
    elif isinstance(found, list):
        # Unigram: a list of [token, score], the id being the position.
        tokens = {str(entry[0]): i for i, entry in enumerate(found)}
    else:
        raise MergeError(f"{file} has no vocabulary")
    for added in content.get("added_tokens") or []:
        tokens[added["content"]] = added["id"]
    return tokens


def _compare(
    first: str, reference: Mapping[str, int], name: str, theirs: Mapping[str, int]
) -> None:
    by_id = {i: token for token, i in reference.items()}
    clashes = [
        (token, i)
        for token, i in theirs.items()
        if reference.get(token, i) != i or by_id.get(i, token) != token
    ]
    if clashes:
        examples = "; ".join(
            f"id {i} is {by_id.get(i, 'unused')!r} in {first} and {token!r} in {name}"
            for token, i in sorted(clashes, key=lambda clash: clash[1])[:3]
        )
        raise MergeError(
            f"the tokenizers of {first} and {name} disagree on {len(clashes)} token(s): "
            f"{examples}; only models with one vocabulary can be merged"
        )
