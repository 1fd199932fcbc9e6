"""The texts of a file of prompts."""

from __future__ import annotations

import json
from pathlib import Path

from mergeops.checkpoint import file_sha256
from mergeops.errors import ConfigError, SourceError

KEYS = ("prompt", "text")
"""What holds the text of a line that is an object."""
SUFFIXES = (".txt", ".jsonl")


def prompts_sha256(file: Path) -> str:
    """Hex digest of the file's bytes.

    Raises:
        ConfigError: there is no such file.
    """
    if not file.is_file():
        raise ConfigError(f"prompts is {file}, which is no file")
    return file_sha256(file)


def read_prompts(file: Path) -> list[str]:
    """Each line's text: the line itself of a .txt, a string or an object's ``prompt`` or ``text``
    of a .jsonl. Empty lines are none.

    Raises:
        ConfigError: it is of another kind, holds no text, or a line holds none; says which line,
            and nothing of what is in it.
        SourceError: it cannot be read.
    """
    if file.suffix not in SUFFIXES:
        raise ConfigError(f"prompts is {file}; it takes a file {' or '.join(SUFFIXES)}")
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is no UTF-8" if isinstance(error, ValueError) else error.strerror
        raise SourceError(f"{file} cannot be read: {reason}") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        text = _text_of(line) if file.suffix == ".jsonl" else line
        if not text:
            raise ConfigError(
                f"{file}, line {number} holds no text; write a JSON string, or an object with "
                f"{' or '.join(KEYS)}"
            )
        prompts.append(text)
    if not prompts:
        raise ConfigError(f"{file} holds no prompt; write one on each line")
    return prompts


def _text_of(line: str) -> str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    if isinstance(found, dict):
        found = next((found[key] for key in KEYS if key in found), "")
    return found if isinstance(found, str) else ""
