"""Controls: is it the sources, or would anything have done?

For each source of a merge two more merges by the same recipe, scored on the dev part: one without
the source (leave one out), which says what it contributes, the failed run too; and one with noise
of the same size in its place, which says whether its direction matters. Nothing is registered, and
the confirm part stays closed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mergeops.candidates import Candidate, choose
from mergeops.confirm import checkpoint_of, recipe_of
from mergeops.errors import AwayError, MergeopsError, TrackingError
from mergeops.evaluate.intervals import Estimate, estimate
from mergeops.plan import make_plan
from mergeops.progress import Progress
from mergeops.random_source import write_random_source
from mergeops.recipe import Recipe, SourceSpec
from mergeops.tools import Tools

if TYPE_CHECKING:
    from mergeops.evaluate import Scores
    from mergeops.evaluate.simultaneous import Simultaneous

LEAVE_ONE_OUT, RANDOM = "leave-one-out", "random"
HELPS, HURTS, UNCLEAR = "helps", "hurts", "not shown"


@dataclass(frozen=True)
class Gain:
    """The merge minus a control, with the interval that holds for all controls together."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Control:
    """One source, left out or made random."""

    source: str
    status: str
    """Of the MLflow run that wrote it, e.g. FAILED; empty where there is none."""
    kind: str
    """leave-one-out or random."""
    score: Estimate | None
    """Of the control, pooled on dev, with its interval."""
    gain: Gain | None
    note: str
    """What was special, or why the control could not be made."""

    @property
    def finding(self) -> str:
        """What the source did for the merge: helps, hurts or not shown."""
        if self.gain is None:
            return "-"
        return HELPS if self.gain.low > 0 else HURTS if self.gain.high < 0 else UNCLEAR


@dataclass(frozen=True)
class Controls:
    """All controls of one merge."""

    name: str
    version: int
    score: str
    """Of the merge, with its interval."""
    controls: tuple[Control, ...]

    COLUMNS: ClassVar = ("source", "run", "in its place", "dev", "merge gains", "it", "note")

    def rows(self) -> list[tuple[str, ...]]:
        """For a table, after ``COLUMNS``."""
        return [
            (
                c.source,
                c.status or "-",
                "nothing" if c.kind == LEAVE_ONE_OUT else "noise",
                "-" if c.score is None else str(c.score),
                "-"
                if c.gain is None
                else f"{c.gain.difference:+.3f} [{c.gain.low:+.3f}, {c.gain.high:+.3f}]",
                c.finding,
                c.note,
            )
            for c in self.controls
        ]

    def footnote(self) -> str:
        """How to read the table."""
        return (
            f"version {self.version} of {self.name}: {self.score} on dev. Gains are the merge less "
            "the control, paired by item; the 95 % intervals hold for all controls together."
        )

    def markdown(self) -> str:
        """As a Markdown table."""
        lines = ["| " + " | ".join(self.COLUMNS) + " |", "|" + " --- |" * len(self.COLUMNS)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows()]
        return "\n".join([*lines, "", self.footnote(), ""])

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "name": self.name,
            "version": self.version,
            "score": self.score,
            "controls": [
                dataclasses.asdict(control)
                | {
                    "score": control.score.value if control.score else None,
                    "score_interval": control.score.interval if control.score else None,
                    "finding": control.finding,
                }
                for control in self.controls
            ],
        }


def run_controls(
    settings: Recipe,
    name: str,
    progress: Progress,
    *,
    version: int | None = None,
    only: str | None = None,
) -> Controls:
    """Make, score and compare the controls of a registered merge, and log them onto its run.

    Args:
        settings: its tracking and output settings hold; the recipe is the merge's own.
        version: None takes the best on the dev part.
        only: leave-one-out or random; None makes both.

    Raises:
        MergeopsError: the merge cannot be found or scored; a control that cannot be made is a row
            that says why.
    """
    from mergeops.evaluate.simultaneous import simultaneous

    tools = Tools(settings, progress)
    candidate = choose(tools.tracking, name, version)
    recipe = recipe_of(tools, settings, candidate)
    tools = Tools(recipe, progress, tracking=tools.tracking)
    tools.load_tasks()
    path = checkpoint_of(tools, recipe, name, candidate)
    merge = tools.score(
        f"version {candidate.version}", path, "dev", sha256=candidate.weights_sha256 or None
    )
    kinds = (only,) if only else (LEAVE_ONE_OUT, RANDOM)
    scored: dict[tuple[str, str], Scores] = {}
    notes: dict[tuple[str, str], str] = {}
    for source in recipe.sources:
        for kind in kinds:
            try:
                make = _without if kind == LEAVE_ONE_OUT else _with_noise
                scored[source, kind], notes[source, kind] = make(tools, recipe, source)
            except MergeopsError as error:
                notes[source, kind] = f"not made: {error}"
    together = simultaneous({f"{kind} {s}": found for (s, kind), found in scored.items()}, merge)
    found = Controls(
        name,
        candidate.version,
        str(estimate(merge)),
        tuple(
            Control(
                source,
                _status(tools, recipe, source),
                kind,
                estimate(scored[source, kind]) if (source, kind) in scored else None,
                _gain(together.get(f"{kind} {source}")),
                note,
            )
            for (source, kind), note in notes.items()
        ),
    )
    _log(tools, candidate, found)
    return found


def without_source(recipe: Recipe, source: str) -> Recipe:
    """The recipe without a source, nor its entries in rules.

    Raises:
        ConfigError: slices, modules or the tokenizer name it, so there is no such recipe.
    """
    raw = recipe.to_dict()
    del raw["sources"][source]
    rules = []
    for rule in raw["rules"]:
        kept: dict[str, Any] = {}
        for key, value in rule.items():
            if isinstance(value, dict):
                value = {name: v for name, v in value.items() if name != source}
            if value != {}:
                kept[key] = value
        if len(kept) > 1:
            rules.append(kept)
    raw["rules"] = rules
    return Recipe.from_dict(raw)


def _without(tools: Tools, recipe: Recipe, source: str) -> tuple[Scores, str]:
    left = [name for name in recipe.sources if name != source]
    try:
        return _score(tools, without_source(recipe, source), f"without {source}"), ""
    except MergeopsError:
        if len(left) != 1:
            raise
    # Methods of two sources have no merge of one: what is left is the other source.
    other = tools.resolve(recipe).sources[left[0]]
    return tools.score_parent(recipe, other, "dev"), f"{left[0]} alone"


def _with_noise(tools: Tools, recipe: Recipe, source: str) -> tuple[Scores, str]:
    resolved = tools.resolve(recipe)
    full = {name: tools.full_checkpoint(recipe, one) for name, one in resolved.sources.items()}
    others = [path for name, path in full.items() if name != source]
    origins = [tools.full_checkpoint(recipe, resolved.base)] if resolved.base else others
    key = f"{recipe.seed} {resolved.sources[source].sha256}"
    digests = [tools.weights_sha256(path) for path in origins]
    digest = hashlib.sha256(" ".join([key, *digests]).encode()).hexdigest()
    made = write_random_source(
        full[source], origins, tools.work_dir / "controls" / digest[:16], key=key
    )
    spec = SourceSpec(str(made.path.absolute()), None, recipe.sources[source].parameters)
    changed = dataclasses.replace(recipe, sources={**recipe.sources, source: spec})
    note = f"{len(made.kept)} tensors have no counterpart and are kept" if made.kept else ""
    return _score(tools, changed, f"noise for {source}"), note


def _score(tools: Tools, recipe: Recipe, label: str) -> Scores:
    resolved = tools.resolve(recipe)
    plan = make_plan(recipe, resolved.base, resolved.sources)
    path: Path = tools.merge(plan, label)
    return tools.score(label, path, "dev", tokenizer=tools.tokenizer_for(recipe, path))


def _status(tools: Tools, recipe: Recipe, source: str) -> str:
    run_id = tools.resolve(recipe).sources[source].run_id
    if not run_id:
        return ""
    try:
        return str(tools.tracking.client.get_run(run_id).info.status)
    except AwayError:
        raise
    except TrackingError:
        return "deleted"


def _gain(control: Simultaneous | None) -> Gain | None:
    # The comparison was control minus merge.
    if control is None:
        return None
    return Gain(-control.difference, -control.high, -control.low)


def _log(tools: Tools, candidate: Candidate, found: Controls) -> None:
    trial = tools.tracking.reopen(candidate.run_id)
    trial.log_json(found.to_dict(), "controls.json")
    trial.log_text(found.markdown(), "controls.md")
