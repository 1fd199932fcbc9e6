"""The chat template that the merge keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.checkpoint import PROCESSOR_TEMPLATE, TokenizerFile, read_json
from mergeops.errors import MergeError, SourceError


@dataclass(frozen=True)
class ChosenTemplate:
    """A chat template, and whose it is."""

    text: str | None
    """None: the tokenizer's own files hold it, or there is none."""
    holder: str | None = None
    """The input that it is from, where the tokenizer is another's."""
    warnings: tuple[str, ...] = ()


def choose_template(
    wanted: str, tokenizer: Path | None, directories: Mapping[str, Sequence[Path]]
) -> ChosenTemplate:
    """Decide which chat template the merge keeps.

    Args:
        wanted: auto, an input's name, or the template.
        tokenizer: the directory whose tokenizer files the merge gets.
        directories: input -> where its small files may be.

    Raises:
        SourceError: a file cannot be read, or its template is no text.
        MergeError: the named input has no chat template.
    """
    if "{" in wanted:
        return ChosenTemplate(wanted)
    templates = {name: _first(places) for name, places in directories.items()}
    texts = {name: text for name, text in templates.items() if text is not None}
    own = read_template(tokenizer) if tokenizer is not None else None
    if wanted != "auto":
        if wanted not in texts:
            raise MergeError(f"tokenizer.chat_template is {wanted!r}, which has no chat template")
        text = texts[wanted]
        return ChosenTemplate(None) if text == own else ChosenTemplate(text, wanted)
    if not texts:
        return ChosenTemplate(None)
    votes = list(texts.values())
    # max keeps the first of equals, and so the order of the inputs.
    text = own if own is not None else max(votes, key=votes.count)
    holders = [name for name, theirs in texts.items() if theirs == text]
    others = [name for name in texts if name not in holders]
    warnings: tuple[str, ...] = ()
    if others:
        warnings = (
            f"chat templates differ: the merge keeps that of {', '.join(holders)}, not that of "
            f"{', '.join(others)}; tokenizer.chat_template chooses another",
        )
    if own is not None:
        return ChosenTemplate(None, warnings=warnings)
    return ChosenTemplate(text, holders[0], warnings)


def read_template(directory: Path) -> str | None:
    """The chat template of a directory: of a file of its own, or of the tokenizer's config.

    Raises:
        SourceError: a file cannot be read, or its template is no text.
    """
    file = directory / TokenizerFile.CHAT_TEMPLATE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise SourceError(f"{file} cannot be read: {error}") from error
    for name in (PROCESSOR_TEMPLATE, TokenizerFile.CONFIG):
        if (directory / name).is_file():
            text = _default(directory / name, read_json(directory / name).get("chat_template"))
            if text:
                return text
    return None


def _first(places: Sequence[Path]) -> str | None:
    return next((text for place in places if (text := read_template(place)) is not None), None)


def _default(file: Path, template: Any) -> str | None:
    """One of several named templates is the default."""
    if template is None or isinstance(template, str):
        return template
    if isinstance(template, list) and all(map(_is_named, template)):
        return {entry["name"]: entry["template"] for entry in template}.get("default")
    raise SourceError(
        f"{file}: chat_template is {ascii(template)[:80]}; allowed is a text, or a list of objects "
        "with a name and a template"
    )


def _is_named(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), str) for key in ("name", "template")
    )
