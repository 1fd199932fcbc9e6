"""Models of sentence-transformers: what ``modules.json`` puts behind the model that is merged."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from mergeops.checkpoint import MODULES, file_sha256
from mergeops.errors import SourceError
from mergeops.planning.inputs import PlannedInput

_OWN = re.compile(r"^(config_sentence_transformers|sentence_.*config)\.json$")
"""Its files beside the model's."""
_WEIGHTS = (".safetensors", ".bin")


def sentence_modules(
    inputs: Sequence[PlannedInput], home: PlannedInput
) -> tuple[dict[str, Path], list[str]]:
    """The files of the modules after the model: pooling, normalisation, dense layers.

    Args:
        inputs: base, where there is one, then sources.
        home: the input that gives config.json.

    Returns:
        Name in the result -> file, empty for any other model; and warnings.

    Raises:
        SourceError: modules.json names no folder inside its directory, or one of pickled weights.
    """
    place = next((d for d in home.directories if (d / MODULES).is_file()), None)
    if place is None:
        return {}, []
    files = _files_of(place)
    told = []
    for name, file in files.items():
        if not name.endswith(_WEIGHTS):
            continue
        if name.endswith(".bin"):
            raise SourceError(
                f"{file} holds pickled weights; save the model again with sentence-transformers, "
                "which writes safetensors"
            )
        others = [d / name for p in inputs if p is not home for d in p.directories]
        differing = [
            other.parent.parent
            for other in others
            if other.is_file() and file_sha256(other) != file_sha256(file)
        ]
        if differing:
            told.append(
                f"{name} is a module with weights of its own, which are not merged: the merge has "
                f"those of {home.name}, and {differing[0]} has others"
            )
    return files, told


def _files_of(place: Path) -> dict[str, Path]:
    path = place / MODULES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        folders = [str(module["path"]) for module in content]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise SourceError(f"{path} is no list of modules of sentence-transformers") from error
    files = {MODULES: path}
    files |= {f.name: f for f in sorted(place.iterdir()) if _OWN.match(f.name) and f.is_file()}
    for folder in folders:
        if not folder:
            continue
        if folder in (".", "..") or "/" in folder or "\0" in folder:
            raise SourceError(f"{path} names the folder {folder!r}; one inside {place} is allowed")
        inside = sorted((place / folder).iterdir()) if (place / folder).is_dir() else []
        files |= {f"{folder}/{f.name}": f for f in inside if f.is_file()}
    return files
