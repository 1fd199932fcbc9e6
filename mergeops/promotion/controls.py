"""Controls: is it the sources, or would anything have done?

For each source of a merge, two more merges by the same recipe are scored on the dev part. One
leaves the source out, which says what it contributes, also where its run failed. One has noise of
the same size in its place, which says whether its direction matters. Nothing is registered, and the
confirm part stays closed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mergeops.checkpoint import CONFIG, hold
from mergeops.errors import AwayError, ConfigError, MergeopsError, TrackingError
from mergeops.pipeline import result_of
from mergeops.planning import make_plan
from mergeops.progress import Progress
from mergeops.promotion.candidates import choose
from mergeops.promotion.confirm import checkpoint_of, recipe_of
from mergeops.promotion.random_source import write_random_source
from mergeops.promotion.tables import markdown_table, signed
from mergeops.recipe import Recipe
from mergeops.scores import Estimate, Scores, estimate, simultaneous_estimate
from mergeops.store import connect
from mergeops.tools import Tools
from mergeops.tracking import reopen

LEAVE_ONE_OUT, RANDOM = "leave-one-out", "random"
HELPS, HURTS, UNCLEAR = "helps", "hurts", "not shown"


@dataclass(frozen=True)
class Gain:
    """The merge minus a control, with the interval that holds for all controls together."""

    difference: float
    low: float
    high: float


def finding_of(gain: Gain) -> str:
    """What a source did for a merge: helps, hurts or not shown."""
    if gain.low > 0:
        return HELPS
    return HURTS if gain.high < 0 else UNCLEAR


@dataclass(frozen=True, kw_only=True)
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
        return "-" if self.gain is None else finding_of(self.gain)

    def row(self) -> tuple[str, ...]:
        """For a table, after ``Controls.COLUMNS``."""
        gain = self.gain
        return (
            self.source,
            self.status or "-",
            "nothing" if self.kind == LEAVE_ONE_OUT else "noise",
            "-" if self.score is None else str(self.score),
            "-" if gain is None else signed(gain.difference, gain.low, gain.high),
            self.finding,
            self.note,
        )


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
        return [control.row() for control in self.controls]

    def footnote(self) -> str:
        """How to read the table."""
        return (
            f"version {self.version} of {self.name}: {self.score} on dev. Gains are the merge less "
            "the control, paired by item; the 95 % intervals hold for all controls together."
        )

    def markdown(self) -> str:
        """As a Markdown table."""
        return f"{markdown_table(self.COLUMNS, self.rows())}\n\n{self.footnote()}\n"

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
    tracking = connect(settings.tracking)
    candidate = choose(tracking, name, version)
    recipe = recipe_of(tracking, settings, candidate)
    tools = Tools(recipe, progress, tracking=tracking)
    tools.load_tasks()
    path = checkpoint_of(tools, recipe, name, candidate)
    if recipe.tool is not None:
        raise ConfigError(
            f"version {candidate.version} of {name} was made by `mergeops {recipe.tool.name}`, "
            "which has no merge without one of its sources; controls are for merges"
        )
    result = result_of(recipe, tools, path, sha256=candidate.weights_sha256 or None)
    merge = tools.score_source(f"version {candidate.version}", recipe, result, "dev")
    scored: dict[tuple[str, str], Scores] = {}
    notes: dict[tuple[str, str], str] = {}
    for source in recipe.sources:
        for kind in (only,) if only else (LEAVE_ONE_OUT, RANDOM):
            make = _without if kind == LEAVE_ONE_OUT else _with_noise
            try:
                scored[source, kind], notes[source, kind] = make(tools, recipe, source)
            except MergeopsError as error:
                notes[source, kind] = f"not made: {error}"
    names = {key: " ".join(key) for key in scored}
    by_name = gains_over({names[key]: scores for key, scores in scored.items()}, merge)
    gains = {key: by_name[name] for key, name in names.items()}
    estimates = {key: estimate(scores) for key, scores in scored.items()}
    controls = Controls(
        name=name,
        version=candidate.version,
        score=str(estimate(merge)),
        controls=tuple(
            Control(
                source=source,
                status=_status(tools, recipe, source),
                kind=kind,
                score=estimates.get((source, kind)),
                gain=gains.get((source, kind)),
                note=note,
            )
            for (source, kind), note in notes.items()
        ),
    )
    trial = reopen(tracking, candidate.run_id)
    trial.log_json(controls.to_dict(), "controls.json")
    trial.log_text(controls.markdown(), "controls.md")
    return controls


def without_source(recipe: Recipe, source: str) -> Recipe:
    """The recipe without a source; see ``with_sources``."""
    return with_sources(recipe, [name for name in recipe.sources if name != source])


def with_sources(recipe: Recipe, names: Collection[str]) -> Recipe:
    """The recipe with some of its sources, and without the entries of others in rules.

    Raises:
        ConfigError: slices, modules or the tokenizer name another, so there is no such recipe.
    """
    raw = recipe.to_dict()
    raw["sources"] = {name: spec for name, spec in raw["sources"].items() if name in names}
    others = set(recipe.sources) - set(names)
    rules = []
    for rule in raw["rules"]:
        kept: dict[str, Any] = {}
        for key, value in rule.items():
            if isinstance(value, dict):
                value = {name: v for name, v in value.items() if name not in others}
            if value != {}:
                kept[key] = value
        if len(kept) > 1:
            rules.append(kept)
    raw["rules"] = rules
    return Recipe.from_dict(raw)


def _without(tools: Tools, recipe: Recipe, source: str) -> tuple[Scores, str]:
    others = [name for name in recipe.sources if name != source]
    try:
        return _score(tools, without_source(recipe, source), f"without {source}"), ""
    except MergeopsError:
        if len(others) != 1:
            raise
    # Methods of two sources have no merge of one: what is left is the other source.
    other = tools.resolve(recipe).sources[others[0]]
    return tools.score_parent(recipe, other, "dev"), f"{other.name} alone"


def _with_noise(tools: Tools, recipe: Recipe, source: str) -> tuple[Scores, str]:
    resolved = tools.resolve(recipe)
    paths = {name: tools.full_checkpoint(recipe, s) for name, s in resolved.sources.items()}
    replaced = paths.pop(source)
    origins = list(paths.values())
    if resolved.base is not None:
        origins = [tools.full_checkpoint(recipe, resolved.base)]
    key = f"{recipe.seed} {resolved.sources[source].sha256}"
    digests = [tools.weights_sha256(path) for path in origins]
    digest = hashlib.sha256(" ".join([key, *digests]).encode()).hexdigest()
    out = tools.work_dir / "controls" / digest[:16]
    noise = write_random_source(replaced, origins, out, key=key)
    hold(noise.path, CONFIG)
    own = recipe.sources[source]
    spec = dataclasses.replace(own, uri=str(noise.path.absolute()), base=None)
    changed = dataclasses.replace(recipe, sources={**recipe.sources, source: spec})
    note = f"{len(noise.kept)} tensors have no counterpart and are kept" if noise.kept else ""
    return _score(tools, changed, f"noise for {source}"), note


def _score(tools: Tools, recipe: Recipe, label: str) -> Scores:
    resolved = tools.resolve(recipe)
    plan = make_plan(recipe, resolved.base, resolved.sources)
    path = tools.merge(plan, label)
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


def gains_over(controls: Mapping[str, Scores], merge: Scores) -> dict[str, Gain]:
    """The merge less each control, with intervals that hold for all controls together."""
    # Each comparison is the control minus the merge; the gain is its negative.
    together = simultaneous_estimate(controls, merge)
    return {
        name: Gain(-control.difference, -control.high, -control.low)
        for name, control in together.items()
    }
