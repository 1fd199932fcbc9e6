"""What beside the weights decides a model's answers: configuration and tokenizer, as digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mergeops.errors import EvaluationError

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_VOCABULARY_FILES = {
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
}
# Written by whoever saved last; no answer depends on them.
_VOLATILE = ("_name_or_path", "transformers_version")


def model_digest(path: Path) -> str:
    """sha256 hex of config.json and generation_config.json, volatile keys apart.

    Raises:
        EvaluationError: no such directory, no config.json, or no JSON in it.
    """
    if not path.is_dir():
        raise EvaluationError(f"model {path} is no directory")
    if not (path / "config.json").is_file():
        raise EvaluationError(f"model {path} has no config.json; it is no Hugging Face checkpoint")
    parts = []
    for name in ("config.json", "generation_config.json"):
        file = path / name
        if not file.is_file():
            continue
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EvaluationError(f"{file} is no JSON: {error}") from error
        if isinstance(config, dict):
            config = {k: v for k, v in config.items() if k not in _VOLATILE}
        parts.append([name, config])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_digest(path: Path) -> str:
    """sha256 hex of the tokenizer files of a directory.

    Raises:
        EvaluationError: there are none.
    """
    found = [name for name in TOKENIZER_FILES if (path / name).is_file()]
    if not _VOCABULARY_FILES & set(found):
        raise EvaluationError(
            f"{path} has no tokenizer (no tokenizer.json, tokenizer.model or vocab.json)"
        )
    digest = hashlib.sha256()
    for name in found:
        digest.update(f"{name}\n".encode())
        digest.update(hashlib.sha256((path / name).read_bytes()).digest())
    return digest.hexdigest()
