"""Workers make and score the merges of several trials; the driver finds them done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from mergeops.pipeline import run
from mergeops.progress import Progress
from mergeops.recipe import Recipe
from mergeops.recipe.settings import TrackingSpec
from mergeops.tools import Tools
from mergeops.tracking import Trial

TEXT = "\n\n".join(f"{i:03d} " + "the hare ran. " * 75 for i in range(16))


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.sweep
def test_trials_find_what_workers_did_and_it_is_the_same_as_here(
    tiny_llama: Callable[..., Path], spec: TrackingSpec, tmp_path: Path
) -> None:
    (tmp_path / "held.txt").write_text(TEXT)
    base = tiny_llama()
    sources = {name: str(tiny_llama(like=base, seed=i)) for i, name in enumerate("ab", 1)}

    def trials(place: str, executor: dict[str, object]) -> tuple[list[Trial], Tools]:
        raw = {
            "base": str(base),
            "sources": sources,
            "evaluate": {"tasks": [str(tmp_path / "held.txt")], "device": "cpu"},
            "tracking": {"uri": spec.uri, "experiment": place, "heat_maps": False},
            "output": {"dir": str(tmp_path / place), "device": "cpu"},
            "executor": executor,
        }
        recipes = [
            Recipe.from_dict({**raw, "method": {"name": "ties", "density": density}})
            for density in (0.3, 0.7)
        ]
        tools = Tools(recipes[0], Progress(quiet=True))
        tools.do_ahead(recipes)
        return [run(recipe, tools) for recipe in recipes], tools

    here, busy = trials("here", {})
    there, idle = trials("there", {"name": "local", "workers": 1, "threads": 1})
    assert (busy.spent.merges, busy.spent.models) == (2, 5)
    assert (idle.spent.merges, idle.spent.models) == (0, 0)
    for one, other in zip(here, there, strict=True):
        assert digests(one.checkpoint) == digests(other.checkpoint)
        assert one.scores is not None and other.scores is not None
        assert one.scores.pooled == other.scores.pooled
        assert [scores.pooled for scores in one.parents.values()] == [
            scores.pooled for scores in other.parents.values()
        ]
