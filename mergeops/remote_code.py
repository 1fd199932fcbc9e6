"""Code that a checkpoint carries: the files that config.json's ``auto_map`` has transformers run.

The merge gets them only where the recipe trusts them; they are copied, never run here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mergeops.checkpoint.layout import read_json


def code_files(configs: Iterable[Path], *, trusted: bool) -> tuple[list[Path], list[str]]:
    """The code files that the merge gets, and warnings about those that it does not.

    Args:
        configs: the config.json and tokenizer_config.json that the merge gets.
        trusted: whether the recipe says ``trust_remote_code``.

    Raises:
        SourceError: a config is no JSON object.
    """
    files: dict[str, Path] = {}
    warnings = []
    for config in configs:
        named = _named(config)
        if not named:
            continue
        # The named ones import others.
        there = {file.name: file for file in sorted(config.parent.glob("*.py")) if file.is_file()}
        missing = sorted(name for name in named if name not in there)
        if missing:
            warnings.append(
                f"{config} has transformers run {', '.join(missing)}, which it does not have; copy "
                "it beside the merge, or the merge does not load"
            )
        elif trusted:
            files = {**there, **files}
        else:
            warnings.append(
                f"{config} has transformers run {', '.join(sorted(named))}, code of its own, which "
                "is not copied: to have it in the merge, set trust_remote_code=true"
            )
    return list(files.values()), warnings


def _named(config: Path) -> set[str]:
    """Files that auto_map names; those of another repository (REPOSITORY--FILE.CLASS) are there."""
    found = set()
    auto_map = read_json(config).get("auto_map")
    waiting = list(auto_map.values()) if isinstance(auto_map, dict) else []
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, str) and "--" not in value and "." in value:
            found.add(value.rpartition(".")[0] + ".py")
    return found
