"""A source that knows nothing: another one's distance from the base, in a random direction.

Every tensor is the base's plus normal noise, scaled so that its difference from the base has the
norm of the source's. If a merge with it is as good, the source's direction was worth nothing, and
the gain is what any perturbation, or the other sources, would have given.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mergeops.checkpoint import INDEX, Checkpoint, CheckpointReader, open_checkpoint, read_tensor
from mergeops.errors import MergeError

if TYPE_CHECKING:
    from torch import Tensor

MARKER = "random_source.json"
COMPANIONS = (".json", ".txt", ".model", ".jinja", ".py")
NOT_COPIED = (INDEX, "mergeops.json", "trainer_state.json", MARKER)


@dataclass(frozen=True)
class RandomSource:
    """A written random source."""

    path: Path
    kept: tuple[str, ...]
    """Tensors left as in the source, having no counterpart of their shape to differ from."""


def write_random_source(
    source: Path, origins: Sequence[Path], out: Path, *, key: str
) -> RandomSource:
    """Write the random counterpart of a full checkpoint, or find it written.

    Args:
        source: the checkpoint to stand in for.
        origins: the base; where a merge has none, the other sources, whose mean takes its place.
        out: the directory; complete or absent.
        key: seeds the noise; another one gives another direction.

    Raises:
        MergeError: it cannot be written.
    """
    marker = out / MARKER
    if marker.is_file():
        return RandomSource(out, tuple(json.loads(marker.read_text(encoding="utf-8"))["kept"]))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        kept = _write_tensors(
            open_checkpoint(source), [open_checkpoint(path) for path in origins], partial, key
        )
        for file in source.iterdir():
            is_companion = file.suffix in COMPANIONS and file.name not in NOT_COPIED
            if is_companion and file.is_file():
                shutil.copy(file, partial / file.name)
        (partial / MARKER).write_text(json.dumps({"kept": kept}), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except OSError as error:
        raise MergeError(f"{out} cannot be written: {error.strerror or error}") from error
    return RandomSource(out, tuple(kept))


def noise_like(source: Tensor, origin: Tensor, key: str) -> Tensor:
    """Origin plus noise with the norm of (source - origin).

    Args:
        source: ``[*shape]`` floating point.
        origin: ``[*shape]``.
        key: seeds the noise; the same key gives the same noise.

    Returns:
        ``[*shape]`` in the source's dtype; the source itself where it equals the origin.
    """
    import torch

    start = origin.to(torch.float32)
    distance = torch.linalg.vector_norm((source.to(torch.float32) - start).double())
    if distance == 0:
        return source
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 2**63
    )
    noise = torch.randn(source.shape, generator=generator)
    noise *= (distance / torch.linalg.vector_norm(noise.double())).float()
    return (start + noise).to(source.dtype)


def _write_tensors(
    source: Checkpoint, origins: Sequence[Checkpoint], folder: Path, key: str
) -> list[str]:
    # One file a tensor, so that one tensor at a time is in memory.
    from safetensors.torch import save_file

    kept, weight_map, total = [], {}, 0
    with ExitStack() as stack:
        reader = stack.enter_context(CheckpointReader(source))
        others = [stack.enter_context(CheckpointReader(origin)) for origin in origins]
        for i, (name, stored) in enumerate(source.tensors.items(), 1):
            tensor = read_tensor(reader, name)
            shapes = [o.tensors[name].shape if name in o.tensors else None for o in origins]
            if tensor.is_floating_point() and all(shape == stored.shape for shape in shapes):
                parts = [read_tensor(other, name).float() for other in others]
                tensor = noise_like(tensor, sum(parts[1:], parts[0]) / len(parts), f"{key} {name}")
            else:
                kept.append(name)
            file = f"model-{i:05d}-of-{len(source.tensors):05d}.safetensors"
            save_file({name: tensor.contiguous()}, folder / file, metadata={"format": "pt"})
            weight_map[name] = file
            total += tensor.numel() * tensor.element_size()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return kept
