"""Settings of the small files in which inputs differ, and which no other check speaks of: how texts
are generated, and what the tokenizer does at their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergeops.checkpoint import CONFIG, GENERATION_CONFIG, TokenizerFile, read_json
from mergeops.planning.inputs import PlannedInput, config_of, read_config_file
from mergeops.planning.special_tokens import text_settings

UNSAID: Mapping[str, Any] = {
    "do_sample": False,
    "early_stopping": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "padding_side": "right",
    "truncation_side": "right",
}
"""What transformers takes where a file says nothing."""
NOT_OF_TEXTS = ("_from_model_config", "transformers_version", "use_cache", "return_dict")
OF_TOKENIZERS = ("padding_side", "truncation_side", "add_bos_token", "add_eos_token")
MOST = 6
"""So many settings of one file are said with their values."""


def told_differences(
    inputs: Sequence[PlannedInput],
    contents: Mapping[str, Mapping[str, Any]],
    homes: Mapping[str, PlannedInput],
    speaker: PlannedInput | None,
    *,
    same_ids: bool,
) -> list[str]:
    """One note for each file in whose settings, as transformers reads them, inputs differ.

    Args:
        inputs: base, where there is one, then sources.
        contents: what config.json and generation_config.json of the merge say.
        homes: file name -> the input that it is from.
        speaker: the input that the tokenizer is from.
        same_ids: whether an id is the same token in every input.
    """
    notes = []
    generation = {planned.name: _generation(planned) for planned in inputs}
    of_config = {planned.name: _ids(config_of(planned)) for planned in inputs}
    for name, read in ((GENERATION_CONFIG, generation), (CONFIG, of_config)):
        home = homes.get(name, homes[CONFIG])
        ours = read[home.name]
        # Those that another input gave to the merge were said.
        kept = [k for k, v in ours.items() if contents.get(name, {}).get(k, v) == v]
        passed = [k for k in ours if k not in kept]
        if name == CONFIG:
            passed += [k for k in of_config[home.name] if _alike(k, generation, of_config)]
        if not same_ids:
            passed += [k for said in read.values() for k in said if _is_id(k)]
        notes += _note(name, read, passed, home)
    if speaker is not None:
        tokenizers = {planned.name: _tokenizer(planned) for planned in inputs}
        notes += _note(TokenizerFile.CONFIG, tokenizers, (), speaker)
    return notes


def _note(
    file: str, read: Mapping[str, Mapping[str, Any]], passed: Sequence[str], whose: PlannedInput
) -> list[str]:
    keys = dict.fromkeys(key for said in read.values() for key in said)
    differing = []
    for key in keys:
        groups: dict[str, list[str]] = {}
        for name, said in read.items():
            groups.setdefault(_shown(said.get(key)), []).append(name)
        if len(groups) > 1 and key not in passed:
            values = [f"{value} in {', '.join(names)}" for value, names in groups.items()]
            differing.append(f"{key} is {' and '.join(values)}")
    if not differing:
        return []
    more = f"; and {len(differing) - MOST} more" if len(differing) > MOST else ""
    return [f"{file}: {'; '.join(differing[:MOST])}{more}; the merge has {whose.name}'s"]


def _generation(planned: PlannedInput) -> dict[str, Any]:
    """How an input generates; transformers takes the ids of config.json where there is no file."""
    files = (directory / GENERATION_CONFIG for directory in planned.directories)
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return _ids(config_of(planned))
    said = {k: v for k, v in read_config_file(file).items() if v is not None}
    return {
        key: value
        for key, value in said.items()
        if UNSAID.get(key) != value and not key.startswith(("output_", *NOT_OF_TEXTS))
    }


def _ids(config: Mapping[str, Any]) -> dict[str, Any]:
    content = {**config, **text_settings(config)}
    return {key: value for key, value in content.items() if _is_id(key) and value is not None}


def _is_id(key: str) -> bool:
    return key.endswith("_token_id")


def _alike(key: str, *read: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether two files of every input say the same."""
    one, other = ({name: said.get(key) for name, said in file.items()} for file in read)
    return one == other


def _tokenizer(planned: PlannedInput) -> dict[str, Any]:
    """The special tokens and sides of an input's tokenizer."""
    said: dict[str, Any] = {}
    for directory in planned.directories:
        for name in (TokenizerFile.SPECIAL_TOKENS, TokenizerFile.CONFIG):
            if (directory / name).is_file():
                said |= read_json(directory / name)
        if said:
            break
    return {
        key: value.get("content") if isinstance(value, Mapping) else value
        for key, value in said.items()
        if (key.endswith("_token") and not key.startswith("add_")) or key in OF_TOKENIZERS
        if value is not None and UNSAID.get(key) != value
    }


def _shown(value: Any) -> str:
    text = "unset" if value is None else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
