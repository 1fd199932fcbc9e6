"""What a trial's MLflow page shows: description, leaderboard, plot, model card, lineage picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mergeops.report.card import CardParent, model_card
from mergeops.report.lineage import Node, lineage_svg

if TYPE_CHECKING:
    from mergeops.recipe import Recipe
    from mergeops.report.leaderboard import Leaderboard
    from mergeops.sources import Resolved, Source


class Page(Protocol):
    """Where the artifacts of one run go; ``tracking.trial.Trial`` is one."""

    name: str
    plan_digest: str

    def log_text(self, text: str, artifact: str) -> None:
        """Write a text artifact."""

    def log_figure(self, figure: Any, artifact: str) -> None:
        """Write a figure artifact."""

    def describe(self, markdown: str) -> None:
        """Set the description."""


def publish(page: Page, recipe: Recipe, resolved: Resolved, board: Leaderboard | None) -> None:
    """Write everything that a reader of the run's page wants; writing it again changes nothing.

    Args:
        page: the run.
        recipe: what was merged.
        resolved: its base and sources, pinned.
        board: the merge among its parents; None where nothing was scored.
    """
    parents = parents_of(resolved)
    page.log_text(
        model_card(
            page.name,
            [CardParent(p.name, p.uri, p.sha256, p.run_id) for p in parents],
            recipe.weights_dict(),
            plan_digest=page.plan_digest,
            scores={row.name: row.tasks for row in board.rows} if board else None,
        ),
        "model_card.md",
    )
    page.log_text(_lineage(page.name, recipe, resolved, board), "lineage.svg")
    if board is not None:
        from mergeops.report.plots import scores_figure

        page.log_text(board.markdown(), "leaderboard.md")
        page.log_figure(scores_figure(board), "plots/scores.png")
    page.describe(_description(page.name, recipe, resolved, board))


def parents_of(resolved: Resolved) -> list[Source]:
    """The base, where there is one, then the sources."""
    base = [resolved.base] if resolved.base is not None else []
    return [*base, *resolved.sources.values()]


def _lineage(name: str, recipe: Recipe, resolved: Resolved, board: Leaderboard | None) -> str:
    scores = {row.name: f"{row.pooled:.3f} on dev" for row in board.rows} if board else {}

    def node(source: Source) -> Node:
        kind = "base" if source is resolved.base else "source"
        weight = recipe.sources[source.name].parameters.get("weight") if kind == "source" else None
        edge = f"weight {weight:g}" if isinstance(weight, float) else ""
        run = f"run {source.run_id[:8]}" if source.run_id else source.path.name
        detail = ", ".join(part for part in (run, scores.get(source.name)) if part)
        return Node(kind, source.name, detail, edge=edge)

    merge = Node("merge", name, scores.get(name, recipe.method.name))
    version = Node("version", recipe.tracking.registered_model, "in the model registry")
    base = node(resolved.base) if resolved.base is not None else None
    return lineage_svg(base, [node(s) for s in resolved.sources.values()], merge, version)


def _description(name: str, recipe: Recipe, resolved: Resolved, board: Leaderboard | None) -> str:
    sources = ", ".join(resolved.sources)
    blocks = [f"**{name}**: a merge of {sources} by `{recipe.method.name}`."]
    if board is not None:
        blocks.append(board.markdown())
    blocks.append(
        "Artifacts: `recipe.yaml`, `lock.json` (sources pinned by sha256), `model_card.md`, "
        "`lineage.svg`, `plots/scores.png`, every item's result in `samples/`.\n\n"
        f"Next: `mergeops promote {recipe.tracking.registered_model}` judges the best merge on the "
        "confirm part."
    )
    return "\n\n".join(blocks)
