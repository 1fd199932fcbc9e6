"""Which model an adapter applies to: what its config and MLflow say, and what the recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergeops.adapters import in_full_precision, read_adapter_config
from mergeops.checkpoint import ADAPTER_CONFIG
from mergeops.errors import SourceError
from mergeops.sources.contents import Location, examine
from mergeops.sources.hub import is_hub_name, pinned_name, snapshot_name
from mergeops.sources.remote.directory import LocalDirectory, moved
from mergeops.sources.schemes import local_path

HUB = "hf://"


@dataclass(frozen=True)
class SaidBase:
    """What an adapter calls the model that was trained."""

    name: str
    """A path on the machine that trained it, or ORG/NAME."""
    revision: str | None = None
    """Its branch, tag or commit on the hub."""

    @property
    def hub_name(self) -> str | None:
        """ORG/NAME[@REVISION], where it may be one: of a path into a hub cache, with its commit."""
        if (snapshot := snapshot_name(self.name)) is not None:
            return snapshot
        if not is_hub_name(self.name):
            return None
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def shown(self) -> str:
        """For messages: as a recipe names it, where that is known."""
        is_pinned = self.revision is not None or snapshot_name(self.name) is not None
        return f"{HUB}{self.hub_name}" if is_pinned and self.hub_name else self.name

    @property
    def why_not_here(self) -> str:
        """Why it is not taken from this machine."""
        path = local_path(self.name)
        if self.hub_name is None and path is not None and not path.is_absolute():
            return "relative to the directory of that training, and nobody noted that"
        return "not reachable from here"


def said_base(adapter: Path, location: Location) -> SaidBase | None:
    """What adapter_config.json says, and MLflow's note of the commit; None where neither does.

    Raises:
        SourceError: adapter_config.json cannot be read.
    """
    config = read_adapter_config(adapter)
    name, revision = config.base_name or location.base, config.revision
    if not name:
        return None
    if revision is None and name == location.base:
        revision = location.base_revision
    return SaidBase(name, revision)


def is_base(said: SaidBase, uri: str) -> bool:
    """Whether a recipe's URI names the model that an adapter was trained on.

    Raises:
        SourceError: it names another commit of the same repository.
    """
    twin = in_full_precision(said.name)
    if twin != said.name and in_full_precision(uri) == uri:
        # A 4-bit repository has commits of its own, which say nothing of the model's.
        return is_base(SaidBase(twin), uri)
    named = uri.removeprefix(HUB) if uri.startswith(HUB) else snapshot_name(uri)
    ours = said.hub_name
    if named is not None and ours is not None:
        if named.partition("@")[0] != ours.partition("@")[0]:
            return False
        if "@" in ours and pinned_name(ours) != pinned_name(named):
            raise SourceError(
                f"the adapter was trained on {HUB}{ours}, and {uri} is another commit of it; name "
                f"{HUB}{ours} as the base"
            )
        return True
    mine, theirs = local_path(said.name), local_path(uri)
    return mine is not None and theirs is not None and mine.absolute() == theirs.absolute()


def check_told(said: SaidBase | None, uri: str) -> None:
    """Refuse a base that was set for an adapter by its repository alone, where the adapter was
    trained on another commit of it; a revision that is written out is meant.

    Raises:
        SourceError: as ``is_base``.
    """
    if said is not None and uri.startswith(HUB) and "@" not in uri:
        is_base(said, uri)


def on_this_machine(said: SaidBase, path_map: Mapping[str, str]) -> Path | None:
    """The directory that an adapter's config names, where it is a full checkpoint here. A relative
    path means the directory that the training ran in, which nobody noted: it is not looked for."""
    path = local_path(moved(said.name, path_map))
    if path is None or not path.is_absolute() or not path.is_dir():
        return None
    contents = examine(LocalDirectory(path))
    return path if "full" in (contents.kind, contents.convertible) else None


def two_models(name: str, uri: str, way: str) -> SourceError:
    """The error for a full model with an adapter beside it; ``way`` is how to apply that."""
    return SourceError(
        f"{name} is {uri}, which holds a full model and a LoRA adapter beside it: only one of them "
        f"can be meant; to apply the adapter, {way}; to take the full model as it is, move "
        f"{ADAPTER_CONFIG} and the adapter's weights out of the directory"
    )
