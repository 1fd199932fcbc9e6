"""What a search or a sweep will take, said before it begins, and what it took."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass
from typing import Any

from mergeops.checkpoint import size_text
from mergeops.engine import MERGING, SCORING, read_pace
from mergeops.evaluate import part_sizes, pick_devices
from mergeops.recipe import Recipe
from mergeops.tools import Tools
from mergeops.workshop import Spent


@dataclass(frozen=True)
class Forecast:
    """At most so much: what is known already is neither merged nor asked again."""

    merges: int
    parents: int
    answers: int
    """Items of the dev part times models."""
    written: int
    """Bytes of all merges."""
    seconds: float | None
    """By what this machine has done before; None where it has done nothing."""
    devices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self) | {"devices": list(self.devices)}

    def __str__(self) -> str:
        models = self.merges + self.parents
        known = "it is not known how long, since nothing was done in this output.dir before"
        took = f"about {clock(self.seconds)}, by its pace before" if self.seconds else known
        return (
            f"at most {_counted(self.merges)}, {size_text(self.written)}, and {self.answers} "
            f"answers of {models} models on {', '.join(self.devices)}: {took}"
        )


def forecast(recipe: Recipe, tools: Tools, merges: int, kept: int | None = None) -> Forecast:
    """What so many merges of the recipe's sources will take.

    Args:
        merges: how many at most.
        kept: how many of them become files; None for all.

    Raises:
        MergeopsError: a source or a task cannot be read.
    """
    resolved = tools.resolve(recipe, measure=False)
    parents = [*resolved.sources.values(), *([resolved.base] if resolved.base else [])]
    tasks = tools.load_tasks()
    items = sum(part_sizes(tasks, "dev").values()) if tasks else 0
    # An adapter is small; the model that it stands for is as large as its base.
    size = max(tools.size_of(source.adapter_base or source.path) for source in parents)
    answers = items * (merges + len(parents))
    paces = [
        (read_pace(tools.work_dir, MERGING), merges * size),
        (read_pace(tools.work_dir, SCORING), answers * size),
    ]
    known = [pace.time_for(amount) for pace, amount in paces if pace is not None]
    return Forecast(
        merges=merges,
        parents=len(parents),
        answers=answers,
        written=(merges if kept is None else kept) * size,
        seconds=sum(known) if len(known) == len(paces) else None,
        devices=tuple(map(str, pick_devices(recipe.evaluate.device))),
    )


def cost(spent: Spent) -> str:
    """What was done, in one line."""
    if not spent.merges and not spent.answers:
        return "it took nothing: all of it was done before"
    return (
        f"it took {_counted(spent.merges)}, {size_text(spent.written)}, in "
        f"{clock(spent.merging_s)}, and {spent.answers} answers of {spent.models} models in "
        f"{clock(spent.scoring_s)}"
    )


def _counted(merges: int) -> str:
    return "1 merge" if merges == 1 else f"{merges} merges"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))
