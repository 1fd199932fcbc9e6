"""Which tokenizer the merge has, and whether all inputs mean the same by a token id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mergeops.errors import MergeError
from mergeops.tokens.vocabulary import read_vocabulary

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
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def tokenizer_directory(directories: Sequence[Path]) -> Path | None:
    """The first directory that holds a tokenizer."""
    for directory in directories:
        if any((directory / name).is_file() for name in VOCABULARY_FILES):
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
    reference = read_vocabulary(file.parent).ids
    warnings = []
    for name, other in others:
        if other.read_bytes() == content:
            continue
        theirs = read_vocabulary(other.parent).ids
        _compare(first, reference, name, theirs)
        only = len(theirs.keys() ^ reference.keys())
        if only:
            warnings.append(
                f"{only} token(s) are known to only one of {first} and {name}; the merge has those "
                f"of {first}"
            )
    return warnings


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
            f"{examples}; set tokenizer.source to base, union or a source's name to match rows by "
            "token"
        )
