"""What a recipe names, found and pinned by hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergeops.checkpoint import FileStamp


@dataclass(frozen=True)
class Source:
    """One input checkpoint, found and pinned."""

    name: str
    """The recipe's short name, or ``base``."""
    uri: str
    """As the recipe wrote it."""
    path: Path
    """Local directory: a full checkpoint, or the adapter's directory."""
    sha256: str
    """Digest of the weights: of the sorted (file name, sha256) of all its weight files, and for an
    adapter of its config and its base's digest too. Equal digests mean equal weights. Empty where
    the weights are hashed while they are merged."""
    adapter_base: Path | None = None
    """For a LoRA adapter: the directory of the full model that it applies to; for what a sharded
    training left: that of the model that was trained."""
    run_id: str | None = None
    """MLflow training run that wrote the checkpoint."""
    model_id: str | None = None
    """MLflow LoggedModel (m-...) of the checkpoint."""
    registered: str | None = None
    """Registered model version, NAME/VERSION, that the URI named."""
    revision: str | None = None
    """Commit of a hub repository."""
    stamps: Mapping[Path, FileStamp] = field(default_factory=dict, compare=False)
    """What its weight files, and its base's, looked like when they were hashed or found."""

    @property
    def is_adapter(self) -> bool:
        """Whether ``path`` holds no full model of its own: a LoRA adapter, or a model in pieces."""
        return self.adapter_base is not None


@dataclass(frozen=True)
class Resolved:
    """Everything that a recipe names, found and pinned."""

    base: Source | None
    sources: dict[str, Source]
    """In the recipe's order."""

    @property
    def parents(self) -> dict[str, Source]:
        """The base, where there is one, and the sources, by name."""
        return {**({"base": self.base} if self.base else {}), **self.sources}
