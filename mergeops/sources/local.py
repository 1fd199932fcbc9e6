"""Local directories as sources."""

from __future__ import annotations

from pathlib import Path

from mergeops.errors import SourceError
from mergeops.sources.contents import Kind, examine
from mergeops.sources.place import LocalPlace


def find(uri: str, path: Path) -> Kind:
    """Whether a directory is a full checkpoint or a LoRA adapter.

    Args:
        uri: as the recipe wrote it, for messages.
        path: the directory it means.

    Raises:
        SourceError: it is neither; says what is there instead, and the way out.
    """
    named = "" if uri == str(path) else f" (from {uri})"
    if not path.exists():
        where = "" if path.is_absolute() else f", looked for in {Path.cwd()}"
        raise SourceError(
            f"there is no directory {path}{named}{where}; a source is a directory, runs:/ID, "
            "models:/NAME/VERSION, models:/NAME@ALIAS or hf://ORG/NAME"
        )
    if not path.is_dir():
        raise SourceError(
            f"{path}{named} is a file; name the directory that holds config.json and safetensors"
        )
    contents = examine(LocalPlace(path))
    if contents.kind is None:
        raise SourceError(str(contents.problem))
    return contents.kind
