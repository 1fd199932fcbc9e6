"""What was measured, on the disk: one safetensors file, and what it is measured of beside it.

    <work directory>/activations/<key>/measured.safetensors
    <work directory>/activations/<key>/measured.json

The key stands for weights, prompts, kind and versions. The directory is made beside its place and
renamed when it is whole. No text of a prompt is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mergeops.checkpoint import StoredTensor, hold, read_headers
from mergeops.errors import SourceError
from mergeops.lazy_torch import torch
from mergeops.methods import LayerActivations
from mergeops.version import __version__

FORMAT = 1
FOLDER = "activations"
FILE, ABOUT = "measured.safetensors", "measured.json"
KINDS = {
    "gram": "X^T X over all tokens, of the inputs X of each linear layer, float64",
    "fisher": "mean square of the gradients of a prompt's log-likelihood under the model's own "
    "draws of the next tokens, of each weight, float64",
}
"""What may be measured."""


@dataclass(frozen=True)
class Measured:
    """What is known of one source's measured activations."""

    path: str
    """The directory."""
    sha256: str
    """Of the measured numbers."""
    kind: str
    weights_sha256: str
    prompts_sha256: str
    prompts: int
    tokens: int
    cut: int
    """Prompts that were longer than the model reads, and lost their end."""
    layers: Mapping[str, Mapping[str, Any]]
    """Weight's name on disk -> key of its numbers, tokens and inputs_first."""

    @property
    def nbytes(self) -> int:
        """Size of the numbers."""
        return (Path(self.path) / FILE).stat().st_size


def place_of(work_dir: Path, kind: str, weights_sha256: str, prompts_sha256: str) -> Path:
    """Where this is kept, be it there or not."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    identity = [FORMAT, kind, weights_sha256, prompts_sha256, __version__, versions]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return work_dir / FOLDER / key[:24]


def find(work_dir: Path, kind: str, weights_sha256: str, prompts_sha256: str) -> Measured | None:
    """What was measured of these weights by these prompts, or None; it stays while this process
    lives."""
    place = place_of(work_dir, kind, weights_sha256, prompts_sha256)
    return _read(place) if hold(place, ABOUT) else None


def kept_in(work_dir: Path) -> list[Measured]:
    """Everything that was measured, by older versions, too."""
    found = map(_read, sorted((work_dir / FOLDER).glob("[!.]*")))
    return [measured for measured in found if measured is not None]


def _read(path: Path) -> Measured | None:
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        return Measured(path=str(path.absolute()), **about)
    except (OSError, ValueError, TypeError):
        return None


class OpenMeasured:
    """One source's measured activations, read where they lie.

    Args:
        path: the directory.
        sha256: what the plan knows them by.

    Raises:
        SourceError: they are gone, or others.
    """

    def __init__(self, path: Path, sha256: str) -> None:
        found = _read(path)
        if found is None or found.sha256 != sha256:
            raise SourceError(
                f"{path} does not hold the activations that the merge was planned with; plan again"
            )
        self._about = found
        self._file = path / FILE
        self._tensors: Mapping[str, StoredTensor] = read_headers(path, [FILE]).tensors

    def layer(self, tensor: str) -> LayerActivations | None:
        """What was measured of a weight, by its name on disk; None where nothing was, or where no
        token came by."""
        about = self._about.layers.get(tensor)
        if about is None or not about["tokens"]:
            return None
        stored = self._tensors[about["key"]]
        # Copy on write: nothing writes, but torch wants what it may write to.
        numbers = np.memmap(
            self._file, np.float64, mode="c", offset=stored.start, shape=tuple(stored.shape)
        )
        return LayerActivations(torch.from_numpy(numbers), about["tokens"], about["inputs_first"])
