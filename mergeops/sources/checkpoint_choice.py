"""A directory that may be a checkpoint of a run, and one that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops.sources.contents import Kind, Location
from mergeops.sources.leftovers import Pieces
from mergeops.sources.remote.directory import Directory

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

LOWEST = "LOWEST_VAL"


@dataclass(frozen=True)
class CheckpointCandidate:
    """One directory that may hold a checkpoint of the run."""

    name: str
    """``checkpoint-12``, a LoggedModel's name, an artifact's path, or empty for a final save."""
    directory: Directory
    """The save; the weights may lie in a directory of it."""
    found_by: str
    """Where the run says so, in words."""
    model: LoggedModel | None = None
    """LoggedModel that holds it."""
    step: int | None = None
    order: int = -1
    """Later ones have larger ones; -1 where nothing says it."""
    in_output_dir: bool = False
    """Whether another run may have written it: it lies in the trainer's directory, or a pointer
    leads there."""
    needs_proof: bool = False
    """Whether only the run's own losses can say that it is the run's: the directory was found
    relative to the current one."""

    @property
    def is_lowest(self) -> bool:
        """Whether NeMo Automodel's link to the save with the lowest validation loss leads to it."""
        here = self.directory.local
        if here is None or not self.in_output_dir:
            return False
        link = here.parent / LOWEST
        return link.is_symlink() and link.resolve() == here.resolve()

    @property
    def model_id(self) -> str | None:
        """The id of the LoggedModel that holds it."""
        return None if self.model is None else str(self.model.model_id)


@dataclass(frozen=True)
class CheckpointChoice:
    """A candidate that is a whole checkpoint."""

    candidate: CheckpointCandidate
    location: Location
    """Where the weights lie."""
    state: dict[str, Any]
    """The trainer's state, where it was saved; else empty."""
    why: str = ""
    """Why this one, in words."""
    value: tuple[str, float] | None = None
    """The metric that it was chosen by, and its value."""
    skipped: tuple[str, ...] = ()
    """What is wrong with the candidates that were passed over."""
    others: tuple[str, ...] = ()
    """Names of all candidates of the stage that it is from, newest first."""

    is_name_shared: bool = False
    """Whether another candidate of the stage has its name, so that the name does not lead here."""

    @property
    def directory(self) -> Directory:
        """Where the weights lie."""
        return self.location.directory

    @property
    def pieces(self) -> Pieces | None:
        """What a sharded training left, where it is that."""
        return self.location.contents.pieces

    @property
    def kind(self) -> Kind | None:
        """Full or an adapter; it is one of them."""
        return self.location.contents.usable

    @property
    def step(self) -> int | None:
        """Optimiser step of the checkpoint."""
        step = self.candidate.step
        return self.state.get("global_step") if step is None else step
