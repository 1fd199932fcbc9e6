"""What is on the disk to be found, and made again where it is not: it goes when it is old."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

from mergeops.activations import ABOUT, FOLDER
from mergeops.cleanup.verdicts import CONTROLS, Verdict, by_age, by_writer
from mergeops.engine import MADE_INPUTS


def made_again(
    work_dir: Path, older_than_s: float, in_use: Collection[str]
) -> Iterator[tuple[Path, Callable[[float], Verdict]]]:
    """Each such directory, and what judges it by its age in seconds.

    Args:
        work_dir: ``output.dir`` of the recipes.
        older_than_s: what was written since is kept, in seconds.
        in_use: digests of weights that kept merges are made of.
    """
    for path in _inside(work_dir / FOLDER):
        yield path, partial(_activations, path, older_than_s, in_use)
    for name in MADE_INPUTS:
        for path in _inside(work_dir / "cache", f"{name}-*"):
            what = f"{name} of mergeops {'moe' if name == 'gates' else 'transplant'}"
            yield path, partial(by_age, what, "cache", older_than_s)
    for path in _inside(work_dir / CONTROLS):
        yield path, partial(by_age, "noise of mergeops controls", "noise", older_than_s)


def _inside(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_dir() and not path.is_symlink())


def _activations(path: Path, older_than_s: float, in_use: Collection[str], age_s: float) -> Verdict:
    if path.name.startswith("."):
        why = "activations whose measuring was interrupted"
        return by_writer(path, why, older_than_s, age_s)
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        weights = str(about["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return "other", False, "not made by mergeops, or damaged"
    what = f"{about.get('kind')} of {weights[:12]}"
    if weights in in_use:
        return "activations", False, f"{what}, a source of a merge that is kept"
    return by_age(what, "activations", older_than_s, age_s)
