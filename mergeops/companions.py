"""The small files beside the weights: config, generation config, tokenizer, chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.checkpoint.digest import file_sha256
from mergeops.checkpoint.layout import read_json
from mergeops.errors import SourceError
from mergeops.tokenizer import (
    CHAT_TEMPLATE_FILES,
    TOKENIZER_FILES,
    chat_template_directory,
    tokenizer_directory,
)

if TYPE_CHECKING:
    from mergeops.inputs import PlannedInput

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class Companion:
    """One small file that the result gets."""

    name: str
    """File name in the result."""
    path: str
    """Where it comes from."""
    sha256: str
    """Digest of the file there."""


def find_companions(
    inputs: Sequence[PlannedInput], tokenizer: PlannedInput
) -> tuple[Companion, ...]:
    """Choose the small files: configs from the first input, the rest from the tokenizer's.

    What one input lacks is taken from the first that has it; but a tokenizer is never put together
    from two.

    Args:
        inputs: base, where there is one, then sources.
        tokenizer: the input whose tokenizer the recipe asks for.

    Raises:
        SourceError: no input has a config.json.
    """
    directories = [d for planned in inputs for d in planned.directories]
    preferred = [*tokenizer.directories, *directories]
    found: dict[str, Path] = {}
    for name in (CONFIG, GENERATION_CONFIG):
        place = next((d for d in directories if (d / name).is_file()), None)
        if place is not None:
            found[name] = place / name
    if CONFIG not in found:
        raise SourceError(f"{directories[0]} has no config.json, and no other input has one")
    chosen = tokenizer_directory(preferred)
    if chosen is not None:
        found |= {n: chosen / n for n in TOKENIZER_FILES if (chosen / n).is_file()}
    template = chat_template_directory(preferred)
    if template is not None:
        found |= {n: template / n for n in CHAT_TEMPLATE_FILES if (template / n).is_file()}
    return tuple(Companion(n, str(p), file_sha256(p)) for n, p in sorted(found.items()))


def write_companions(
    companions: Sequence[Companion],
    out: Path,
    save_dtype: str,
    changes: Mapping[str, Any] | None = None,
) -> list[str]:
    """Copy the files; config.json gets the dtype that the weights are saved in.

    Args:
        companions: what to copy.
        out: where to.
        save_dtype: as config.json words it.
        changes: what else differs in config.json; mappings inside it are changed, not replaced.

    Returns:
        The names written.

    Raises:
        SourceError: a file changed after the merge was planned.
    """
    for companion in companions:
        source = Path(companion.path)
        if file_sha256(source) != companion.sha256:
            raise SourceError(
                f"{source} changed after the merge was planned; run the command again when nobody "
                "writes it"
            )
        if companion.name == CONFIG:
            config = changed(read_json(source), changes or {})
            # Old readers know torch_dtype, new ones dtype.
            if "torch_dtype" in config:
                config["torch_dtype"] = save_dtype
            config["dtype"] = save_dtype
            text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            (out / CONFIG).write_text(text, encoding="utf-8")
        else:
            (out / companion.name).write_bytes(source.read_bytes())
    return [companion.name for companion in companions]


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with ``changes``; mappings that both have are merged in the same way."""
    result = dict(config)
    for key, value in changes.items():
        ours = result.get(key)
        both = isinstance(ours, Mapping) and isinstance(value, Mapping)
        result[key] = changed(ours, value) if both else value  # type: ignore[arg-type]
    return result
