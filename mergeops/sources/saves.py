"""How trainers and MLflow lay out what they save: a small grammar of directory names.

    checkpoint-N              HF Trainer, TRL, Axolotl, LLaMA-Factory, Unsloth
    checkpoint-N/NAME         the same, an adapter with a name of its own
    run-T/checkpoint-N        HF Trainer, a trial of a hyperparameter search
    epoch_E_step_S/model[/consolidated]          NeMo Automodel
    epoch_E, step_S           torchtune
    merged                    axolotl merge-lora
    checkpoint-N/artifacts/checkpoint-N          MLflow 2, a checkpoint that the HF Trainer logged

A directory whose name holds a step or an epoch is one save; where in it the weights lie is found
when it is its turn. All others are looked into, to a bounded depth.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mergeops.errors import SourceError
from mergeops.sources.contents import Location, examine, step_of
from mergeops.sources.leftovers import unfinished
from mergeops.sources.logged_model import MLMODEL, read_logged_model
from mergeops.sources.remote.directory import Directory, DirectoryEntry

_log = logging.getLogger(__name__)
DEPTH = 8
MOST_DIRECTORIES = 300
"""Listings of one search: each is a question to an artifact store."""

# What trainers put beside weights: optimisers, and shards that ``leftovers`` names.
_NO_MODEL = re.compile(r"^(\..*|optim|optimizer(_\d+)?|pytorch_model_fsdp_\d+)$")
_OF_A_SAVE = re.compile(r"^global_step\d+$")
"""DeepSpeed's folder in a save of another trainer; a save itself where no other is around it."""


@dataclass(frozen=True)
class Save:
    """A directory in which one save lies."""

    path: str
    """Below the directory that was searched; empty for that itself."""
    directory: Directory
    step: int | None = None
    """The optimiser step that its name says."""
    order: int = -1
    """Later saves have larger ones: the step, or the epoch; -1 where no name says it."""


def saves_in(root: Directory, entries: list[DirectoryEntry] | None = None) -> Iterator[Save]:
    """Every save in a directory; whether each is whole is not asked yet."""
    left = [MOST_DIRECTORIES]
    seen: set[str] = set()
    yield from _saves(root, "", entries, DEPTH, left, seen)
    if left[0] < 0:
        _log.warning(
            "%s holds more than %d directories, and the rest was not looked at; name the "
            "checkpoint's own: runs:/RUN_ID/DIRECTORY, or the run's tag mergeops.checkpoint_uri",
            root.shown,
            MOST_DIRECTORIES,
        )


def locations_in(
    directory: Directory, depth: int = DEPTH, problems: list[str] | None = None
) -> list[Location]:
    """The checkpoints in one save: itself, what MLmodel names, or what lies in its directories.

    Args:
        directory: the save.
        depth: how many directories deep.
        problems: takes what is there that is not read, and why, the most telling first.
    """
    problems = [] if problems is None else problems
    entries = directory.entries()
    if (problem := unfinished(directory, entries)) is not None:
        problems.insert(0, problem)
        return []
    if any(entry.name == MLMODEL and not entry.is_dir for entry in entries):
        logged = read_logged_model(directory)
        if logged.problem is not None:
            problems.insert(0, logged.problem)
            return []
        if logged.locations:
            return list(logged.locations)
    contents = examine(directory, entries)
    if contents.kind is not None:
        return [Location(directory, contents)]
    if contents.problem is not None:
        problems.insert(0 if contents.has_weights else len(problems), contents.problem)
    found: list[Location] = []
    for entry in entries:
        is_model = not _NO_MODEL.match(entry.name) and not _OF_A_SAVE.match(entry.name)
        if entry.is_dir and depth and is_model:
            found += locations_in(directory.inside(entry.name), depth - 1, problems)
    whole = [location for location in found if location.contents.kind is not None]
    if not whole and contents.sharded is not None:
        # The folder of the model in it is the same pieces once more.
        return [Location(directory, contents)]
    return whole or found


def find_checkpoint(directory: Directory) -> Location | None:
    """The checkpoint in what MLflow stores of a model, or in what a trainer saved at one step.

    Raises:
        SourceError: there are several, or what is there cannot be read.
    """
    problems: list[str] = []
    locations = locations_in(directory, problems=problems)
    if len(locations) > 1:
        raise SourceError(
            f"{directory.shown} holds several checkpoints; name one: "
            + ", ".join(location.directory.shown for location in locations)
        )
    return locations[0] if locations else None


def why_none(directory: Directory) -> str:
    """Why a directory holds no checkpoint: the most telling of what is there."""
    problems: list[str] = []
    locations_in(directory, problems=problems)
    return problems[0] if problems else f"{directory.shown} is empty or does not exist"


def _saves(
    directory: Directory,
    path: str,
    entries: list[DirectoryEntry] | None,
    depth: int,
    left: list[int],
    seen: set[str],
) -> Iterator[Save]:
    left[0] -= 1
    if left[0] < 0:
        return
    entries = directory.entries() if entries is None else entries
    names = {entry.name for entry in entries if not entry.is_dir}
    contents = examine(directory, entries)
    is_save = contents.kind is not None
    if contents.pieces is not None:
        # Of a run of DeepSpeed alone the folders of its steps are the saves.
        is_save = step_of(contents.pieces.place.shown.rpartition("/")[2])[1] < 0
    if MLMODEL in names or is_save:
        yield Save(path, directory)
        if path:
            return
    folders = [e.name for e in entries if e.is_dir and not _NO_MODEL.match(e.name)]
    # By number first: a link to one of them (LATEST, best) is the same save.
    for name in sorted(folders, key=lambda name: (step_of(name)[1] < 0, name)):
        inner = directory.inside(name)
        if inner.local is not None:
            real = str(inner.local.resolve())
            if real in seen:
                continue
            seen.add(real)
        below = f"{path}/{name}".lstrip("/")
        step, order = step_of(name)
        if order >= 0:
            yield Save(below, inner, step, order)
        elif depth:
            yield from _saves(inner, below, None, depth - 1, left, seen)
