"""The final comparison: open the confirm part for one candidate, judge it, and move @champion.

The candidate is chosen by its dev score alone. Only then are it, its best parent (by dev score too)
and the current champion scored on the confirm part, and the gate decides.
"""

from __future__ import annotations

import dataclasses
import getpass
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops import promote as registry
from mergeops.checkpoint.manifest import read_manifest
from mergeops.errors import GateRefusedError, TrackingError
from mergeops.gate import Verdict, judge
from mergeops.progress import Progress
from mergeops.recipe import Recipe
from mergeops.settings import TrackingSpec
from mergeops.tools import Tools

if TYPE_CHECKING:
    from mergeops.evaluate import Scores
    from mergeops.sources import Source


@dataclass(frozen=True)
class Outcome:
    """What became of a promotion."""

    name: str
    version: int
    verdict: Verdict
    change: registry.Change | None
    """The audit's entry; None where the gate refused."""
    refusal: GateRefusedError | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "name": self.name,
            "version": self.version,
            "promoted": self.change is not None,
            "change": self.change.to_dict() if self.change else None,
            "verdict": self.verdict.to_dict(),
        }

    def raise_if_refused(self) -> None:
        """Raise the gate's refusal, where there is one."""
        if self.refusal is not None:
            raise self.refusal


def promote(
    settings: Recipe,
    name: str,
    progress: Progress,
    *,
    version: int | None = None,
    expect_current: int | None = None,
    force: bool = False,
    reason: str | None = None,
) -> Outcome:
    """Judge a registered merge on the confirm part, and make it @champion if the gate holds.

    Args:
        settings: its tracking, promote and output settings hold; what is scored comes from the
            candidate's own recipe.
        name: the registered model.
        version: None takes the best on the dev part.

    Raises:
        TrackingError: no such model or version, no candidate with scores, or another writer.
    """
    tools = Tools(settings, progress)
    candidate = _candidate(tools, name, version)
    recipe = _recipe_of(tools, settings, candidate.run_id)
    tools = Tools(recipe, progress, tracking=tools.tracking)
    progress.step(
        f"candidate: version {candidate.version} of {name}, {candidate.dev_score:.3f} on dev"
    )
    scores = _confirm_scores(tools, recipe, name, candidate)
    references = _references(tools, recipe, name)
    verdict = judge(scores, references, recipe.promote)
    tools.tracking.reopen(candidate.run_id).log_scores(scores)
    try:
        change = registry.promote(
            tools.tracking,
            name,
            candidate.version,
            verdict.to_dict(),
            passed=verdict.promotes,
            user=getpass.getuser(),
            expect_current=expect_current,
            force=force,
            reason=reason,
        )
    except GateRefusedError as refusal:
        return Outcome(name, candidate.version, verdict, None, refusal)
    return Outcome(name, candidate.version, verdict, change, None)


def rollback(spec: TrackingSpec, name: str) -> registry.Change:
    """Make @previous the @champion again.

    Raises:
        TrackingError: no such model, or no previous champion.
    """
    from mergeops.tracking.connection import connect

    return registry.rollback(connect(spec), name, user=getpass.getuser())


def _candidate(tools: Tools, name: str, version: int | None) -> registry.Candidate:
    found = registry.candidates(tools.tracking, name)
    if version is not None:
        for candidate in found:
            if candidate.version == version:
                return candidate
        known = ", ".join(str(c.version) for c in sorted(found, key=lambda c: c.version))
        raise TrackingError(
            f"version {version} of {name} is no merge of this experiment's trials; merges: "
            f"{known or 'none'}"
        )
    scored = [candidate for candidate in found if not math.isnan(candidate.dev_score)]
    if not scored:
        raise TrackingError(
            f"{name} has no merge with a dev score to choose by; run one with evaluate.tasks=[...]"
        )
    return scored[0]


def _recipe_of(tools: Tools, settings: Recipe, run_id: str) -> Recipe:
    logged = Recipe.from_dict(tools.tracking.recipe(run_id))
    return dataclasses.replace(
        logged,
        promote=settings.promote,
        tracking=settings.tracking,
        output=settings.output,
        path_map={**logged.path_map, **settings.path_map},
        evaluate=dataclasses.replace(
            logged.evaluate,
            batch_size=settings.evaluate.batch_size,
            device=settings.evaluate.device,
        ),
    )


def _confirm_scores(
    tools: Tools, recipe: Recipe, name: str, candidate: registry.Candidate
) -> Scores:
    path = tools.work_dir / "merges" / candidate.plan_digest[:16]
    if read_manifest(path) is None:
        path = tools.resolve_one(recipe, f"models:/{name}/{candidate.version}").path
    return tools.score(
        f"version {candidate.version}", path, "confirm", sha256=candidate.weights_sha256 or None
    )


def _references(tools: Tools, recipe: Recipe, name: str) -> dict[str, Scores]:
    wanted = recipe.promote.against
    resolved = tools.resolve(recipe)
    references: dict[str, Source] = {}
    if "best_parent" in wanted:
        dev = tools.score_parents(recipe)
        best = max(recipe.sources, key=lambda source: dev[source].merit)
        references[f"best_parent:{best}"] = resolved.sources[best]
    if "base" in wanted and resolved.base is not None:
        references["base"] = resolved.base
    scores = {
        label: tools.score_parent(recipe, source, "confirm") for label, source in references.items()
    }
    champion = registry.champion(tools.tracking, name) if "champion" in wanted else None
    if champion is not None:
        found = tools.resolve_one(recipe, f"models:/{name}/{champion}")
        scores[f"champion:{champion}"] = tools.score(
            f"champion, version {champion}", found.path, "confirm", sha256=found.sha256
        )
    return scores
