"""A trial kept on disk while the server is away: all that ``mergeops sync`` needs to log it later.

    OUTPUT_DIR/pending/PLAN/trial.json     recipe, plan, parents, scores; only its owner may read it
    OUTPUT_DIR/pending/PLAN/artifacts/     files that were to become artifacts of the run

The checkpoint stays where the merge put it. The folder goes when the trial is in MLflow.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError, TrackingError
from mergeops.evaluate import ItemResult, Scores, TaskScore
from mergeops.recipe import Recipe
from mergeops.sources import Source

FORMAT = 1
FOLDER = "pending"
ARTIFACTS = "artifacts"


@dataclass
class Pending:
    """One trial, as far as it has come."""

    folder: Path
    name: str
    plan_digest: str
    recipe: Recipe
    plan: Mapping[str, Any]
    sources: Mapping[str, Source]
    base: Source | None
    uri: str
    """Tracking URI that the trial was to be logged to; may hold credentials."""
    parent_run_id: str | None = None
    checkpoint: Path | None = None
    """The finished merge; None until there is one."""
    weights_sha256: str | None = None
    scores: Scores | None = None
    parents: dict[str, Scores] = field(default_factory=dict)
    registration: dict[str, str] | None = None
    """Name, role, status and description of the version; set once all the work is done."""
    reason: str = ""
    """Why it could not be logged."""

    @property
    def is_ready(self) -> bool:
        """Whether nothing is left but logging."""
        return self.checkpoint is not None and self.registration is not None

    @property
    def artifacts(self) -> Path:
        """Files to log with the run, at their paths there."""
        return self.folder / ARTIFACTS

    def write(self) -> None:
        """Bring it to the disk, whole or not at all; nothing is written before there is a merge.

        Raises:
            TrackingError: the disk does not take it.
        """
        if self.checkpoint is None:
            return
        text = json.dumps({"format": FORMAT, **_to_plain(self)}, indent=1) + "\n"
        with self._on_disk(f".trial.json.{os.getpid()}") as partial:
            # The recipe may name credentials in URIs, so nobody else may read it.
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / "trial.json")

    def write_artifact(self, name: str, write: Callable[[Path], object]) -> None:
        """Keep a file for the run, once there is a merge.

        Args:
            name: of the artifact, e.g. ``plots/scores.png``.
            write: called with the path to write to.

        Raises:
            TrackingError: the disk does not take it.
        """
        if self.checkpoint is not None:
            with self._on_disk(f"{ARTIFACTS}/{name}") as path:
                write(path)

    @contextmanager
    def _on_disk(self, name: str) -> Iterator[Path]:
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path
        except OSError as error:
            # Half a file is nothing to log later.
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise TrackingError(
                f"the trial {self.name!r} cannot be kept in {self.folder} "
                f"({error.strerror or error}), and cannot be logged now ({self.reason}); its merge "
                "and scores are kept: put that right, then run the same command again"
            ) from error

    def remove(self) -> None:
        """Forget it: it is logged."""
        shutil.rmtree(self.folder, ignore_errors=True)


def folder_of(output_dir: Path, plan_digest: str) -> Path:
    """Where the trial of a plan is kept."""
    return (output_dir / FOLDER / plan_digest[:16]).absolute()


def pending_trials(output_dir: Path) -> list[Pending]:
    """Every trial that is kept below ``output_dir``, oldest first.

    Raises:
        TrackingError: one is damaged; names the file.
    """
    return [read_pending(path) for path in pending_files(output_dir)]


def pending_files(output_dir: Path) -> list[Path]:
    """The record of every trial that is kept below ``output_dir``, oldest first."""
    files = (output_dir / FOLDER).glob("*/trial.json")
    return sorted(files, key=lambda path: path.stat().st_mtime_ns)


def read_pending(path: Path) -> Pending:
    """The trial of a record.

    Raises:
        TrackingError: it is damaged, or another version's; names the file.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.pop("format") != FORMAT:
            raise TrackingError(f"{path} was written by another version of mergeops")
        facts = {
            **raw,
            "recipe": Recipe.from_dict(raw["recipe"]),
            "sources": {name: _source(found) for name, found in raw["sources"].items()},
            "base": _source(raw["base"]) if raw["base"] else None,
            "checkpoint": Path(raw["checkpoint"]),
            "scores": _scores(raw["scores"]) if raw["scores"] else None,
            "parents": {name: _scores(found) for name, found in raw["parents"].items()},
        }
        return Pending(folder=path.parent.absolute(), **facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise TrackingError(
            f"{path} is damaged ({error!r}); remove its folder and run the trial's command again, "
            "which finds the finished merge and scores"
        ) from error


def _to_plain(kept: Pending) -> dict[str, Any]:
    raw = {f.name: getattr(kept, f.name) for f in dataclasses.fields(Pending) if f.name != "folder"}
    raw |= {
        "recipe": kept.recipe.to_dict(),
        "sources": {name: _source_plain(source) for name, source in kept.sources.items()},
        "base": _source_plain(kept.base) if kept.base else None,
        "checkpoint": str(kept.checkpoint),
        "scores": dataclasses.asdict(kept.scores) if kept.scores else None,
        "parents": {name: dataclasses.asdict(found) for name, found in kept.parents.items()},
    }
    return raw


def _source_plain(source: Source) -> dict[str, Any]:
    # Nothing is read again, so how the files looked does not matter any more.
    raw = dataclasses.asdict(dataclasses.replace(source, stamps={}))
    base = source.adapter_base
    return {**raw, "path": str(source.path), "adapter_base": str(base) if base else None}


def _source(raw: Mapping[str, Any]) -> Source:
    base = raw["adapter_base"]
    return Source(
        **{**raw, "path": Path(raw["path"]), "adapter_base": Path(base) if base else None}
    )


def _scores(raw: Mapping[str, Any]) -> Scores:
    tasks = {
        name: TaskScore(**{**task, "items": tuple(ItemResult(**item) for item in task["items"])})
        for name, task in raw["tasks"].items()
    }
    return Scores(**{**raw, "tasks": tasks})
