"""The files of a tokenizer: the one list of their names."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from mergeops.checkpoint.layout import read_json
from mergeops.errors import SourceError


class TokenizerFile(StrEnum):
    """Name of a file that belongs to a tokenizer."""

    TOKENIZER = "tokenizer.json"
    SENTENCEPIECE = "tokenizer.model"
    VOCABULARY = "vocab.json"
    WORDS = "vocab.txt"
    T5 = "spiece.model"
    XLM = "sentencepiece.bpe.model"
    MISTRAL = "tekken.json"
    TIKTOKEN = "tiktoken.model"
    QWEN = "qwen.tiktoken"
    PIECES = "sentencepiece.model"
    DEBERTA = "spm.model"
    MARIAN = "source.spm"
    MARIAN_TARGET = "target.spm"
    BPE_CODES = "bpe.codes"
    MERGES = "merges.txt"
    CONFIG = "tokenizer_config.json"
    SPECIAL_TOKENS = "special_tokens_map.json"
    ADDED_TOKENS = "added_tokens.json"
    CHAT_TEMPLATE = "chat_template.jinja"


PROCESSOR_TEMPLATE = "chat_template.json"
"""The chat template of an old processor; transformers' tokenizers do not read it."""

VOCABULARY_FILES = (
    TokenizerFile.TOKENIZER,
    TokenizerFile.SENTENCEPIECE,
    TokenizerFile.VOCABULARY,
    TokenizerFile.WORDS,
    TokenizerFile.T5,
    TokenizerFile.XLM,
    TokenizerFile.MISTRAL,
    TokenizerFile.TIKTOKEN,
    TokenizerFile.QWEN,
    TokenizerFile.PIECES,
    TokenizerFile.DEBERTA,
    TokenizerFile.MARIAN,
    TokenizerFile.BPE_CODES,
)
"""Any one of these makes a tokenizer."""

WITHOUT_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "DiaTokenizer", "PerceiverTokenizer")
"""Classes of transformers whose tokens are bytes or characters."""


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds a vocabulary, or names a tokenizer that needs none."""
    if any((directory / name).is_file() for name in VOCABULARY_FILES):
        return True
    try:
        said = read_json(directory / TokenizerFile.CONFIG).get("tokenizer_class")
    except SourceError:
        return False
    return said in WITHOUT_VOCABULARY


def tokenizer_directory(directories: Sequence[Path]) -> Path | None:
    """The first directory that holds a tokenizer."""
    return next((directory for directory in directories if has_tokenizer(directory)), None)
