"""Ids of special tokens: those of the tokenizer's input, and rows that the embeddings have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergeops.checkpoint import CONFIG, GENERATION_CONFIG, TokenizerFile, read_json
from mergeops.planning.inputs import PlannedInput, read_config_file
from mergeops.planning.tokens.vocabulary import has_vocabulary, read_vocabulary

ENDS, END = "eos_token_id", "eos_token"


def reconciled(
    contents: Mapping[str, dict[str, Any]],
    homes: Mapping[str, PlannedInput],
    speaker: PlannedInput,
    ends: PlannedInput,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Ids of special tokens are the tokenizer's input's, and what ends a text is that of the
    template's.

    Args:
        contents: config.json and, where an input has one, generation_config.json.
        homes: file name -> the input that it is from.
        speaker: the input that the tokenizer is from.
        ends: the input that the chat template is from.
    """
    changed, told = dict(contents), []
    last = GENERATION_CONFIG if GENERATION_CONFIG in contents else CONFIG
    for name, content in contents.items():
        given = {key: (value, speaker) for key, value in _ids_of(speaker, name).items()}
        if name == last and ENDS in (theirs := _ids_of(ends, name)):
            given[ENDS] = (theirs[ENDS], ends)
        ids = {}
        for key, (value, whose) in given.items():
            if whose is homes[name] or content.get(key) == value:
                continue
            source = "tokenizer" if whose is speaker else "chat template"
            told.append(
                f"{name}: {key} is {content.get(key)} in {homes[name].name}, and {value} in "
                f"{whose.name}, which the {source} is from; the merge has {value}"
            )
            ids[key] = value
        if ids:
            changed[name] = _with_ids(content, ids)
    return changed, told


def _ids_of(planned: PlannedInput, name: str) -> dict[str, Any]:
    """The ids at the top of an input's file of this name, or of its config.json."""
    files = [directory / name for directory in planned.directories]
    files += [directory / CONFIG for directory in planned.directories]
    content = next((read_config_file(file) for file in files if file.is_file()), {})
    return {k: v for k, v in content.items() if k.endswith("_token_id") and v is not None}


def _with_ids(config: Mapping[str, Any], ids: Mapping[str, Any]) -> dict[str, Any]:
    """A config with these ids, wherever it has them, and at its top."""
    changed = {
        key: _with_ids(value, {k: v for k, v in ids.items() if k in value})
        if isinstance(value, Mapping)
        else value
        for key, value in config.items()
    }
    return {**changed, **ids}


def check_special_tokens(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Warn of ids that no row of the embeddings has, and of texts longer than the context.

    Args:
        files: name -> content of the result's config.json and generation_config.json.
    """
    settings = text_settings(files[CONFIG])
    rows, context = settings.get("vocab_size"), settings.get("max_position_embeddings")
    warnings = []
    for name, content in files.items():
        for key, value in _ids(content if name != CONFIG else {**content, **settings}):
            if isinstance(rows, int) and value >= rows:
                warnings.append(
                    f"{name}: {key} is {value}, and the vocabulary has {rows} rows: there is no "
                    "such token"
                )
        for key in ("max_length", "max_new_tokens"):
            length = content.get(key)
            if name == CONFIG or not isinstance(context, int) or not isinstance(length, int):
                continue
            if length > context:
                warnings.append(
                    f"{name}: {key} is {length}, and the model's context has {context} positions; "
                    "texts may be generated beyond it"
                )
    return warnings


def check_tokens(files: Mapping[str, Mapping[str, Any]], tokenizer: Path) -> list[str]:
    """Warn of tokens that no row of the embeddings stands for, and where the tokenizer ends a text
    with a token that generation does not stop at.

    Args:
        files: name -> content of the result's config.json and generation_config.json.
        tokenizer: the directory that the tokenizer is from.
    """
    if not has_vocabulary(tokenizer):
        return []
    ids = read_vocabulary(tokenizer).ids
    return [*_check_rows(files[CONFIG], ids), *_check_end(files, tokenizer, ids)]


def _check_rows(config: Mapping[str, Any], ids: Mapping[str, int]) -> list[str]:
    rows = text_settings(config).get("vocab_size")
    beyond = [(i, token) for token, i in ids.items() if isinstance(rows, int) and i >= rows]
    if not beyond:
        return []
    number, token = min(beyond)
    return [
        f"the tokenizer has {len(beyond)} token(s) that the model has no row for, e.g. {token!r}, "
        f"{number} of {rows} rows: it cannot read them; where a training added them, their rows "
        "are in none of the inputs"
    ]


def _check_end(
    files: Mapping[str, Mapping[str, Any]], tokenizer: Path, ids: Mapping[str, int]
) -> list[str]:
    settings = tokenizer / TokenizerFile.CONFIG
    named = read_json(settings).get(END) if settings.is_file() else None
    token = named.get("content") if isinstance(named, Mapping) else named
    if not isinstance(token, str):
        return []
    number = ids.get(token)
    speaks = GENERATION_CONFIG if ENDS in files.get(GENERATION_CONFIG, {}) else CONFIG
    content = {**text_settings(files[CONFIG]), **files[speaks]}
    stops = [value for key, value in _ids(content) if key == ENDS]
    if number is None or not stops or number in stops:
        return []
    return [
        f"the tokenizer's eos_token is {token!r}, {number}, and {speaks} says eos_token_id "
        f"{content[ENDS]}: what generates stops at that only; set eos_token_id to both where "
        "texts go on beyond their end"
    ]


def text_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that is about the text: all of it, but in multimodal models."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), Mapping):
            return config[key]  # type: ignore[no-any-return]
    return config


def _ids(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if key.endswith("_token_id"):
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, int):
                    yield key, one
