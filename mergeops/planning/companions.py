"""The small files beside the weights: configs, tokenizer, chat template, processor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

from mergeops.checkpoint import (
    CONFIG,
    GENERATION_CONFIG,
    MORE_TEMPLATES,
    PROCESSOR_TEMPLATE,
    TokenizerFile,
    file_sha256,
    is_processor_file,
    is_small_file,
    read_json,
    read_small,
    tokenizer_directory,
)
from mergeops.errors import SourceError
from mergeops.planning.architecture import changed, with_dtype
from mergeops.planning.inputs import PlannedInput, read_config_file
from mergeops.planning.quantisation_left import plain_config
from mergeops.planning.sentence_models import sentence_modules
from mergeops.planning.special_tokens import (
    check_special_tokens,
    check_tokens,
    reconciled,
    text_settings,
)
from mergeops.planning.tokens.merged import NewToken
from mergeops.planning.tokens.template import choose_template
from mergeops.planning.tokens.vocabulary import check_settings, has_vocabulary, why_not_read
from mergeops.planning.tokens.vocabulary_layout import VocabularyLayout
from mergeops.planning.tokens.written_files import WITH_TOKENS, with_tokens, with_vocabulary
from mergeops.planning.used_settings import told_differences

SENSES = ("vision", "audio", "mel_bins", "image_token", "speech")
"""Parts of the names of settings that models have which take more than text."""


@dataclass(frozen=True)
class Companion:
    """One small file that the result gets."""

    name: str
    """File name in the result, maybe in a folder: FOLDER/FILE."""
    path: str
    """Where it comes from; empty for a text of the recipe's."""
    sha256: str
    """Digest of the file there, or of ``text``."""
    text: str | None = None
    """What it says, where that is not what the file there says."""
    added: tuple[NewToken, ...] = ()
    """Tokens that it names besides."""

    @property
    def identity(self) -> list[Any]:
        """What decides its bytes in the result."""
        tokens = [[token.content, token.id, dict(token.flags)] for token in self.added]
        return [self.name, self.sha256, *([tokens] if tokens else [])]


def find_companions(
    inputs: Sequence[PlannedInput],
    tokenizer: PlannedInput,
    chat_template: str,
    vocabulary: VocabularyLayout | None,
    *,
    trust_code: bool = False,
) -> tuple[tuple[Companion, ...], tuple[str, ...]]:
    """Choose the small files: configs and processor from the first input, the rest from the
    tokenizer's.

    What one input lacks is taken from the first that has it; but a tokenizer or a processor is
    never put together from two, and ids of special tokens are those of the input that the tokenizer
    is from.

    Args:
        inputs: base, where there is one, then sources.
        tokenizer: the input whose tokenizer the recipe asks for.
        chat_template: auto, an input's name, or the template itself.
        vocabulary: the merge's, where it is not simply that of every input.
        trust_code: whether the code that the configs name is copied.

    Returns:
        The files by name, and warnings.

    Raises:
        SourceError: no input has a config.json, or one holds what is no JSON.
        MergeError: the input whose chat template is wanted has none.
    """
    owners = {d: planned for planned in inputs for d in planned.directories}
    places = {}
    for name in (CONFIG, GENERATION_CONFIG):
        place = next((d for d in owners if (d / name).is_file()), None)
        if place is not None:
            places[name] = place
    if CONFIG not in places:
        raise SourceError(f"{next(iter(owners))} has no config.json, and no other input has one")
    homes = {name: owners[place] for name, place in places.items()}
    home = homes[CONFIG]
    contents = {name: read_config_file(place / name) for name, place in places.items()}
    contents[CONFIG], warnings = plain_config(contents[CONFIG], home.name)
    chosen = tokenizer_directory([*tokenizer.directories, *owners])
    template = choose_template(chat_template, chosen, {p.name: p.directories for p in inputs})
    if vocabulary is not None:
        for name, place in places.items():
            theirs = next((d for d in tokenizer.directories if (d / name).is_file()), place)
            ids_from = None if theirs == place else read_config_file(theirs / name)
            contents[name] = with_vocabulary(contents[name], vocabulary, ids_from)
    else:
        speaker = owners[chosen] if chosen is not None else home
        ends = next((p for p in inputs if p.name == template.holder), speaker)
        contents, told = reconciled(contents, homes, speaker, ends)
        warnings += told
    warnings += told_differences(
        inputs,
        contents,
        homes,
        owners[chosen] if chosen else None,
        same_ids=vocabulary is None,
    )
    files = {name: _copy(place / name) for name, place in places.items()}
    for name, content in contents.items():
        path = places[name] / name
        if content != read_json(path):
            files[name] = _written(name, path, _dump(content))
    files |= _small_files(chosen or places[CONFIG])
    if chosen is not None:
        files |= _copies([chosen / PROCESSOR_TEMPLATE])
        files |= _in_folder(chosen, MORE_TEMPLATES, (".jinja",))
        if TokenizerFile.CONFIG in files:
            check_settings(chosen / TokenizerFile.CONFIG)
        if has_vocabulary(chosen) and (reason := why_not_read(chosen)):
            warnings.append(
                f"the library tokenizers {version('tokenizers')} cannot read "
                f"{chosen / TokenizerFile.TOKENIZER} ({reason}), which the merge gets: take a "
                "newer version, or put the file there that was saved with the weights"
            )
    elif "vocab_size" in text_settings(contents[CONFIG]):
        warnings.append("no input has a tokenizer, so the merge has none; put one beside it")
    own_places = [*home.directories, *([chosen] if chosen else []), *owners]
    processors = next((found for place in own_places if (found := _processors(place))), {})
    files |= processors
    warnings += _about_processors(contents[CONFIG], processors, home)
    modules, told = sentence_modules(inputs, home)
    files |= {name: Companion(name, str(path), file_sha256(path)) for name, path in modules.items()}
    warnings += told
    settings = files.get(TokenizerFile.CONFIG)
    if template.text is not None:
        files.pop(PROCESSOR_TEMPLATE, None)
        name = TokenizerFile.CHAT_TEMPLATE
        files[name] = _written(name, None, template.text)
        if settings is not None:
            content = read_json(Path(settings.path))
            if content.pop("chat_template", None) is not None:
                files[settings.name] = _written(settings.name, Path(settings.path), _dump(content))
    if vocabulary is not None and vocabulary.added:
        for name in files.keys() & set(WITH_TOKENS):
            files[name] = replace(files[name], added=vocabulary.added)
    configs = [files[CONFIG], *([settings] if settings else [])]
    code, about_code = _code_files((Path(file.path) for file in configs), trusted=trust_code)
    files |= _copies(code)
    warnings += [*template.warnings, *about_code]
    if vocabulary is None:
        # An adapter may bring a vocabulary that grew.
        contents = {**contents, CONFIG: changed(contents[CONFIG], home.config_changes)}
    warnings += check_special_tokens(contents)
    warnings += check_tokens(contents, chosen) if chosen is not None else []
    return tuple(files[name] for name in sorted(files)), tuple(warnings)


def result_config(companions: Sequence[Companion]) -> dict[str, Any]:
    """What the result's config.json says, before what the plan changes in it."""
    config = next(companion for companion in companions if companion.name == CONFIG)
    if config.text is None:
        return read_config_file(Path(config.path))
    content: dict[str, Any] = json.loads(config.text)
    return content


def write_companions(
    companions: Sequence[Companion],
    out: Path,
    save_dtype: str,
    changes: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write the files and return their names.

    config.json gets the dtype that the weights are saved in, and ``changes``: mappings inside it
    are changed, not replaced.
    """
    for companion in companions:
        content = _content(companion)
        if companion.name == CONFIG:
            config = with_dtype(changed(json.loads(content), changes or {}), save_dtype)
            config["dtype"] = save_dtype
            content = _dump(config).encode()
        elif companion.added:
            extended = with_tokens(companion.name, json.loads(content), companion.added)
            # The order of a vocabulary is the order of its ids: keys are not sorted.
            content = (indented(extended) + "\n").encode()
        (out / companion.name).parent.mkdir(exist_ok=True)
        (out / companion.name).write_bytes(content)
    return [companion.name for companion in companions]


def indented(value: Any, before: str = "\n") -> str:
    """As ``json.dumps(value, indent=2, ensure_ascii=False)``, which takes seconds for a tokenizer.

    Args:
        value: as JSON gives it.
        before: the line's end and the indent of what holds the value.
    """
    inside = before + "  "
    if isinstance(value, dict) and value:
        entries = [f"{encode_basestring(k)}: {indented(v, inside)}" for k, v in value.items()]
        return f"{{{inside}{f',{inside}'.join(entries)}{before}}}"
    if isinstance(value, list) and value:
        entries = [indented(item, inside) for item in value]
        return f"[{inside}{f',{inside}'.join(entries)}{before}]"
    if isinstance(value, str):
        return encode_basestring(value)
    return repr(value) if type(value) is int else json.dumps(value)


def _content(companion: Companion) -> bytes:
    if companion.text is not None:
        return companion.text.encode()
    source = Path(companion.path)
    content = read_small(source)
    if hashlib.sha256(content).hexdigest() != companion.sha256:
        raise SourceError(
            f"{source} changed after the merge was planned; run the command again when nobody "
            "writes it"
        )
    return content


def _copy(file: Path) -> Companion:
    return Companion(file.name, str(file), file_sha256(file))


def _copies(files: Iterable[Path]) -> dict[str, Companion]:
    """Those of the files that are there, by name."""
    return {file.name: _copy(file) for file in files if file.is_file()}


def _small_files(directory: Path) -> dict[str, Companion]:
    """The small files of a tokenizer's directory, but for a processor's."""
    names = sorted(path.name for path in directory.iterdir())
    kept = [n for n in names if is_small_file(n) and not is_processor_file(n)]
    return _copies(directory / name for name in kept)


def _in_folder(directory: Path, folder: str, endings: tuple[str, ...]) -> dict[str, Companion]:
    """The files of a folder inside a directory, by ``FOLDER/FILE``; none where it has none."""
    place = directory / folder
    found = sorted(place.iterdir()) if place.is_dir() else []
    return {
        f"{folder}/{file.name}": Companion(f"{folder}/{file.name}", str(file), file_sha256(file))
        for file in found
        if file.is_file() and file.name.endswith(endings)
    }


def _processors(directory: Path) -> dict[str, Companion]:
    names = sorted(path.name for path in directory.iterdir())
    return _copies(directory / name for name in names if is_processor_file(name))


def _about_processors(
    config: Mapping[str, Any], files: Mapping[str, Companion], home: PlannedInput
) -> list[str]:
    if not files and any(sense in key for key in config for sense in SENSES):
        return [
            "the model sees or hears, and no input has a processor (preprocessor_config.json): "
            "the merge has none; put one beside it"
        ]
    strangers = [f.name for f in files.values() if Path(f.path).parent not in home.directories]
    if strangers:
        place = Path(files[strangers[0]].path).parent
        return [f"{home.name} has no processor; {', '.join(strangers)} of {place} is taken"]
    return []


def _written(name: str, file: Path | None, text: str) -> Companion:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Companion(name, str(file) if file else "", digest, text)


def _dump(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _code_files(configs: Iterable[Path], *, trusted: bool) -> tuple[list[Path], list[str]]:
    """The code files that the merge gets, and warnings about those that it does not.

    They are what the ``auto_map`` of config.json and tokenizer_config.json has transformers run; a
    merge gets them only where the recipe trusts them, and they are never run here.
    """
    files: dict[str, Path] = {}
    warnings = []
    for config in configs:
        named = _named(config)
        if not named:
            continue
        # The named ones import others.
        beside = {file.name: file for file in sorted(config.parent.glob("*.py")) if file.is_file()}
        missing = sorted(name for name in named if name not in beside)
        if missing:
            warnings.append(
                f"{config} has transformers run {', '.join(missing)}, which it does not have; copy "
                "it beside the merge, or the merge does not load"
            )
        elif trusted:
            files = {**beside, **files}
        else:
            warnings.append(
                f"{config} has transformers run {', '.join(sorted(named))}, code of its own, which "
                "is not copied: to have it in the merge, set trust_remote_code=true"
            )
    return list(files.values()), warnings


def _named(config: Path) -> set[str]:
    """Files that auto_map names; those of another repository (REPOSITORY--FILE.CLASS) are there."""
    files = set()
    auto_map = read_json(config).get("auto_map")
    waiting = list(auto_map.values()) if isinstance(auto_map, dict) else []
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, str) and "--" not in value and "." in value:
            files.add(value.rpartition(".")[0] + ".py")
    return files
