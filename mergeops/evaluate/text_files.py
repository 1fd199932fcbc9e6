"""A text file as a task, for those who have no questions: bits per byte of its passages.

The text should be held: none that a source was trained on, or it measures memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergeops.errors import EvaluationError

ENDINGS = (".txt", ".md", ".text")
PASSAGE = 1000
"""Characters that a passage has at least, the last one apart."""
FEWEST = 8
"""Passages of a file: dev and confirm share them."""


def passages(text: str) -> list[str]:
    """Cut a text into items that are scored each by itself.

    Cuts lie at empty lines, where there are some, else at ends of lines. No character is lost but
    the line breaks at the cuts; a rest that is shorter than a passage is part of the last one.
    """
    found: list[str] = []
    gathered = ""
    for piece in _pieces(text):
        gathered += piece
        if len(gathered) >= PASSAGE:
            found.append(gathered.strip("\n"))
            gathered = ""
    if gathered.strip() and found:
        found[-1] += "\n" + gathered.strip("\n")
    elif gathered.strip():
        found.append(gathered.strip("\n"))
    return found


def read_passages(path: Path) -> list[str]:
    """The different passages of a text file.

    Raises:
        EvaluationError: it is not there or not UTF-8, or makes too few passages.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"text file {path} cannot be read as UTF-8: {error}; convert it, e.g. by iconv"
        ) from error
    found = list(dict.fromkeys(passages(text)))
    if len(found) < FEWEST:
        raise EvaluationError(
            f"text file {path} makes {len(found)} different passages of {PASSAGE} characters; the "
            f"dev and the confirm part need {FEWEST} together: use a longer text, whose lines or "
            "paragraphs are no longer than that"
        )
    return found


def text_config(path: Path) -> dict[str, Any]:
    """The lm-eval task of a text file, named by the file: its passages, scored in bits per byte.

    Raises:
        EvaluationError: as ``read_passages``.
    """
    found = read_passages(path)

    def read(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_dict({"text": found})}

    return {
        "task": re.sub(r"[^\w.-]", "_", path.stem),
        "custom_dataset": read,
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "bits_per_byte"}],
        "metadata": {"version": 1.0},
    }


def _pieces(text: str) -> Iterator[str]:
    """Paragraphs or lines with what ends them."""
    end = "\n\n" if "\n\n" in text.strip() else "\n"
    return (piece + end for piece in re.split(r"\n\s*\n" if end == "\n\n" else r"\n", text))
