"""The small files beside the weights: config, generation config, tokenizer, chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.checkpoint.digest import file_sha256
from mergeops.checkpoint.layout import CONFIG, read_json
from mergeops.errors import SourceError
from mergeops.remote_code import code_files
from mergeops.tokenizer import CHAT_TEMPLATE_FILES, TOKENIZER_FILES, tokenizer_directory
from mergeops.tokens.files import WITH_TOKENS, with_tokens, with_vocabulary
from mergeops.tokens.layout import VocabularyLayout
from mergeops.tokens.merged import NewToken
from mergeops.tokens.template import TEMPLATE, choose_template
from mergeops.tokens.vocabulary import TOKENIZER_CONFIG

if TYPE_CHECKING:
    from mergeops.inputs import PlannedInput

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class Companion:
    """One small file that the result gets."""

    name: str
    """File name in the result."""
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
    """Choose the small files: configs from the first input, the rest from the tokenizer's.

    What one input lacks is taken from the first that has it; but a tokenizer is never put together
    from two.

    Args:
        inputs: base, where there is one, then sources.
        tokenizer: the input whose tokenizer the recipe asks for.
        chat_template: auto, an input's name, or the template itself.
        vocabulary: the merge's, where it is not simply that of every input.
        trust_code: whether the code that the configs name is copied.

    Returns:
        The files by name, and warnings.

    Raises:
        SourceError: no input has a config.json.
        MergeError: the input whose chat template is wanted has none.
    """
    directories = [d for planned in inputs for d in planned.directories]
    preferred = [*tokenizer.directories, *directories]
    found: dict[str, Companion] = {}
    for name in (CONFIG, GENERATION_CONFIG):
        place = next((d for d in directories if (d / name).is_file()), None)
        if place is None:
            continue
        found[name] = _copy(place / name)
        if vocabulary is not None:
            theirs = next((d for d in tokenizer.directories if (d / name).is_file()), place)
            ids_from = None if theirs == place else read_json(theirs / name)
            config = with_vocabulary(read_json(place / name), vocabulary, ids_from)
            found[name] = _written(name, place / name, _dump(config))
    if CONFIG not in found:
        raise SourceError(f"{directories[0]} has no config.json, and no other input has one")
    chosen = tokenizer_directory(preferred)
    files = [chosen / n for n in TOKENIZER_FILES if (chosen / n).is_file()] if chosen else []
    found |= {file.name: _copy(file) for file in files}
    template = choose_template(chat_template, chosen, {p.name: p.directories for p in inputs})
    if template.text is not None:
        found[TEMPLATE] = _written(TEMPLATE, None, template.text)
        if TOKENIZER_CONFIG in found:
            config = read_json(Path(found[TOKENIZER_CONFIG].path))
            if config.pop("chat_template", None) is not None:
                path = Path(found[TOKENIZER_CONFIG].path)
                found[TOKENIZER_CONFIG] = _written(TOKENIZER_CONFIG, path, _dump(config))
    elif chosen is not None:
        own = [chosen / n for n in CHAT_TEMPLATE_FILES if (chosen / n).is_file()]
        found |= {file.name: _copy(file) for file in own}
    if vocabulary is not None and vocabulary.added:
        for name in found.keys() & set(WITH_TOKENS):
            found[name] = replace(found[name], added=vocabulary.added)
    configs = [Path(found[n].path) for n in (CONFIG, TOKENIZER_CONFIG) if n in found]
    code, warnings = code_files(configs, trusted=trust_code)
    found |= {file.name: _copy(file) for file in code}
    return tuple(found[name] for name in sorted(found)), (*template.warnings, *warnings)


def write_companions(
    companions: Sequence[Companion],
    out: Path,
    save_dtype: str,
    changes: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write the files; config.json gets the dtype that the weights are saved in.

    Args:
        companions: what to write.
        out: where to.
        save_dtype: as config.json words it.
        changes: what else differs in config.json; mappings inside it are changed, not replaced.

    Returns:
        The names written.

    Raises:
        SourceError: a file changed after the merge was planned.
    """
    for companion in companions:
        content = _content(companion)
        if companion.name == CONFIG:
            config = changed(json.loads(content), changes or {})
            # Old readers know torch_dtype, new ones dtype.
            if "torch_dtype" in config:
                config["torch_dtype"] = save_dtype
            config["dtype"] = save_dtype
            content = _dump(config).encode()
        elif companion.added:
            extended = with_tokens(companion.name, json.loads(content), companion.added)
            # The order of a vocabulary is the order of its ids: keys are not sorted.
            content = (json.dumps(extended, indent=2, ensure_ascii=False) + "\n").encode()
        (out / companion.name).write_bytes(content)
    return [companion.name for companion in companions]


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with ``changes``; mappings that both have are merged in the same way."""
    result = dict(config)
    for key, value in changes.items():
        ours = result.get(key)
        both = isinstance(ours, Mapping) and isinstance(value, Mapping)
        result[key] = changed(ours, value) if both else value  # type: ignore[arg-type]
    return result


def _content(companion: Companion) -> bytes:
    if companion.text is not None:
        return companion.text.encode()
    source = Path(companion.path)
    if file_sha256(source) != companion.sha256:
        raise SourceError(
            f"{source} changed after the merge was planned; run the command again when nobody "
            "writes it"
        )
    return source.read_bytes()


def _copy(file: Path) -> Companion:
    return Companion(file.name, str(file), file_sha256(file))


def _written(name: str, file: Path | None, text: str) -> Companion:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Companion(name, str(file) if file else "", digest, text)


def _dump(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
