"""A trial kept on disk while the server is away: all that ``mergeops sync`` needs to log it later.

    OUTPUT_DIR/pending/TRIAL/trial.json    recipe, plan, parents, scores; only its owner may read it
    OUTPUT_DIR/pending/TRIAL/artifacts/    files that were to become artifacts of the run

A trial belongs to one server, workspace and experiment: the same plan may wait for several.

The checkpoint stays where the merge put it. The folder goes when the trial is in MLflow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.checkpoint import replace_with
from mergeops.errors import MergeopsError, TrackingError
from mergeops.recipe import Recipe
from mergeops.scores import Scores
from mergeops.sources import Source
from mergeops.tracking.logged_run import FIGURE

FORMAT = 1
DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What a record of other types runs into."""
FOLDER = "pending"
ARTIFACTS = "artifacts"


@dataclass(kw_only=True)
class Pending:
    """One trial, as far as it has come.

    Each step of ``TrackedTrial`` has its facts taken down by a method here (``note_...``), or keeps
    its file by one (``write_...``).
    """

    folder: Path
    name: str
    plan_digest: str
    recipe: Recipe
    plan: Mapping[str, Any]
    sources: Mapping[str, Source]
    base: Source | None
    uri: str
    """Tracking URI that the trial was to be logged to; may hold credentials."""
    workspace: str | None = None
    """Of that server; empty is its default, and None is not known: an older mergeops kept it."""
    registry_uri: str | None = None
    """Of the registry that a version was to go to; empty is the tracking server's, and None is not
    known, as above."""
    parent_run_id: str | None = None
    checkpoint: Path | None = None
    """The finished merge; None until there is one."""
    weights_sha256: str | None = None
    scores: Scores | None = None
    parents: dict[str, Scores] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    """What its making measured, as metrics of the run."""
    registration: dict[str, str] | None = None
    """The registered model's name, empty where none is wanted, and more; set once all the work is
    done."""
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

    @property
    def inputs(self) -> dict[str, Source]:
        """Base, where there is one, and sources."""
        return {**({"base": self.base} if self.base else {}), **self.sources}

    def note_model(
        self,
        checkpoint: Path,
        weights_sha256: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """There is a merge."""
        self.checkpoint, self.weights_sha256 = checkpoint.absolute(), weights_sha256

    def note_parent(self, source: Source, scores: Scores) -> None:
        """A parent is scored."""
        self.parents[source.name] = scores

    def note_scores(self, scores: Scores) -> None:
        """The merge is scored."""
        self.scores = scores

    def note_measures(self, measures: Mapping[str, float]) -> None:
        """Its making measured something."""
        self.measures = dict(measures)

    def note_registration(self, name: str) -> None:
        """All the work is done; without a name nothing is registered."""
        # What else is written is read by older versions of mergeops only.
        version = {"role": "merge", "status": "candidate", "description": self.name}
        self.registration = {"name": name, **version}

    def write_text(self, text: str, artifact: str) -> None:
        """Keep a text for the run, once there is a merge."""
        self._write_artifact(artifact, lambda path: path.write_text(text, encoding="utf-8"))

    def write_figure(self, figure: Any, artifact: str) -> None:
        """Keep a matplotlib figure for the run, once there is a merge."""
        kind = artifact.rpartition(".")[2]
        self._write_artifact(artifact, lambda path: figure.savefig(path, format=kind, **FIGURE))

    def write(self) -> None:
        """Bring it to the disk, whole or not at all; nothing is written before there is a merge.

        Raises:
            TrackingError: the disk does not take it.
        """
        if self.checkpoint is None:
            return
        text = json.dumps({"format": FORMAT, **_to_plain(self)}, indent=1) + "\n"
        with self._on_disk("trial.json") as partial:
            # The recipe may name credentials in URIs, so nobody else may read it.
            partial.touch(0o600)
            partial.write_text(text, encoding="utf-8")

    def _write_artifact(self, name: str, write: Callable[[Path], object]) -> None:
        if self.checkpoint is not None:
            with self._on_disk(f"{ARTIFACTS}/{name}", sync=False) as partial:
                write(partial)

    @contextmanager
    def _on_disk(self, name: str, *, sync: bool = True) -> Iterator[Path]:
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_with(path, sync=sync) as partial:
                yield partial
        except OSError as error:
            raise TrackingError(
                f"the trial {self.name!r} cannot be kept in {self.folder} "
                f"({error.strerror or error}), and cannot be logged now ({self.reason}); its merge "
                "and scores are kept: put that right, then run the same command again"
            ) from error

    def remove(self) -> None:
        """Forget it: it is logged."""
        shutil.rmtree(self.folder, ignore_errors=True)


def folder_of(output_dir: Path, plan_digest: str, *place: str) -> Path:
    """Where the trial of a plan is kept.

    Args:
        place: server, workspace and experiment that it is to be logged to.
    """
    place_digest = hashlib.sha256("\n".join(place).encode()).hexdigest()
    return (output_dir / FOLDER / f"{plan_digest[:16]}-{place_digest[:8]}").absolute()


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
        if not path.is_file():
            raise ValueError("it is no file")
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.pop("format") != FORMAT:
            raise TrackingError(f"{path} was written by another version of mergeops")
        _check_types(raw)
        facts = {
            **raw,
            "recipe": Recipe.from_dict(raw["recipe"]),
            "sources": {name: _source(source) for name, source in raw["sources"].items()},
            "base": _source(raw["base"]) if raw["base"] else None,
            "checkpoint": Path(raw["checkpoint"]),
            "scores": Scores.from_dict(raw["scores"]) if raw["scores"] else None,
            "parents": {name: Scores.from_dict(scores) for name, scores in raw["parents"].items()},
        }
        return Pending(folder=path.parent.absolute(), **facts)
    except TrackingError:
        raise
    except (*DAMAGE, MergeopsError) as error:
        raise _damaged(path, error) from error


def _check_types(raw: Mapping[str, Any]) -> None:
    """Refuse facts of other types here, where the file is known."""
    texts = {key: raw[key] for key in ("name", "plan_digest", "uri", "checkpoint", "reason")}
    texts |= {key: raw[key] or "" for key in ("parent_run_id", "weights_sha256")}
    texts |= {key: raw.get(key) or "" for key in ("workspace", "registry_uri")}
    numbers = raw.get("measures") or {}
    wrong_numbers = [key for key, value in numbers.items() if not isinstance(value, int | float)]
    texts |= raw["registration"] or {}
    for name, source in {**raw["sources"], "base": raw["base"] or {}}.items():
        optional = {key: value or "" for key, value in source.items() if key != "stamps"}
        texts |= {f"{name}.{key}": value for key, value in optional.items()}
    wrong = [key for key, value in texts.items() if not isinstance(value, str) or "\0" in value]
    wrong += wrong_numbers
    if wrong or not isinstance(raw["plan"], dict):
        raise TypeError(f"{wrong[0] if wrong else 'plan'} is of another type")


def _damaged(path: Path, error: Exception) -> TrackingError:
    return TrackingError(
        f"{path} is damaged ({error!r}); remove its folder and run the trial's command again, "
        "which finds the finished merge and scores"
    )


def _to_plain(kept: Pending) -> dict[str, Any]:
    raw = {f.name: getattr(kept, f.name) for f in dataclasses.fields(Pending) if f.name != "folder"}
    raw |= {
        "recipe": kept.recipe.to_dict(),
        "sources": {name: _source_plain(source) for name, source in kept.sources.items()},
        "base": _source_plain(kept.base) if kept.base else None,
        "checkpoint": str(kept.checkpoint),
        "scores": kept.scores.to_dict() if kept.scores else None,
        "parents": {name: scores.to_dict() for name, scores in kept.parents.items()},
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
