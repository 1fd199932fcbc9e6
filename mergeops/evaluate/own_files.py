"""The user's own files that decide what is asked: those of tasks, and texts."""

from __future__ import annotations

from pathlib import Path

from mergeops.checkpoint import file_sha256
from mergeops.recipe import EvaluateSpec

SUFFIXES = (".yaml", ".yml", ".py", ".json", ".jsonl", ".txt", ".md")


def task_files(spec: EvaluateSpec) -> dict[str, str]:
    """Path -> sha256 of each, as far as ``evaluate.include_path`` and ``evaluate.tasks`` name them.

    Raises:
        SourceError: a file cannot be read.
    """
    named = [Path(task).expanduser() for task in spec.tasks]
    if spec.include_path is not None:
        named += sorted(Path(spec.include_path).expanduser().rglob("*"))
    files = [path for path in named if path.suffix in SUFFIXES and path.is_file()]
    return {str(path.absolute()): file_sha256(path) for path in files}
