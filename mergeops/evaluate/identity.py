"""What beside the weights decides a model's answers, as digests: configuration, tokenizer, code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mergeops.checkpoint import CONFIG, GENERATION_CONFIG, TokenizerFile, has_tokenizer
from mergeops.errors import EvaluationError

VOLATILE = ("_name_or_path", "transformers_version")
"""Keys of config.json that are written by whoever saved last; no answer depends on them."""


def model_digest(path: Path, *, trust_remote_code: bool) -> str:
    """sha256 hex of config.json and generation_config.json, volatile keys apart.

    Of a checkpoint with code of its own also that code, and whether it may run.

    Raises:
        EvaluationError: no such directory, no config.json, or no JSON in it.
    """
    if not path.is_dir():
        raise EvaluationError(f"model {path} is no directory")
    if not (path / CONFIG).is_file():
        raise EvaluationError(f"model {path} has no config.json; it is no Hugging Face checkpoint")
    parts: list[Any] = []
    for name in (CONFIG, GENERATION_CONFIG):
        file = path / name
        if not file.is_file():
            continue
        config = _read(file)
        if isinstance(config, dict):
            if "auto_map" in config:
                parts.append(_own_code(path, trust_remote_code))
            config = {k: v for k, v in config.items() if k not in VOLATILE}
        parts.append([name, config])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_digest(path: Path, *, trust_remote_code: bool) -> str:
    """sha256 hex of the tokenizer files of a directory, code of its own among them.

    Raises:
        EvaluationError: there are none, or tokenizer_config.json is no JSON.
    """
    if not has_tokenizer(path):
        raise EvaluationError(
            f"{path} has no tokenizer (no tokenizer.json, tokenizer.model or vocab.json)"
        )
    digest = hashlib.sha256()
    # In the order of the names, which digests of kept scores were computed in.
    for name in sorted(TokenizerFile):
        if (path / name).is_file():
            digest.update(f"{name}\n".encode())
            digest.update(hashlib.sha256((path / name).read_bytes()).digest())
    settings = path / TokenizerFile.CONFIG
    if settings.is_file() and "auto_map" in _read(settings):
        digest.update(json.dumps(_own_code(path, trust_remote_code)).encode())
    return digest.hexdigest()


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvaluationError(f"{file} is no JSON: {error}") from error


def _own_code(path: Path, trusted: bool) -> list[Any]:
    files = sorted(path.rglob("*.py"))
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    names = [str(file.relative_to(path)) for file in files]
    return ["trusted" if trusted else "not trusted", names, digests]
