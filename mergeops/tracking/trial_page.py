"""What a person finds on a trial's page in MLflow: text, leaderboard, plot, lineage and card."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mergeops.report.card import CardParent, model_card
from mergeops.report.lineage import Node, lineage_svg
from mergeops.secrets import redact
from mergeops.tracking.client import or_none

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mergeops.recipe import Recipe
    from mergeops.report.leaderboard import Leaderboard
    from mergeops.sources import Source
    from mergeops.tracking.trial_run import Trial


def log_leaderboard(trial: Trial, board: Leaderboard) -> None:
    """Log the merge among its parents: leaderboard.md, leaderboard.json and plots/scores.png."""
    from mergeops.report.plots import scores_figure

    trial.log_text(board.markdown(), "leaderboard.md")
    trial.log_json(board.to_dict(), "leaderboard.json")
    trial.log_figure(scores_figure(board), "plots/scores.png")


def log_page(trial: Trial, recipe: Recipe, parents: dict[str, Source], version: int) -> None:
    """Log lineage.svg and model_card.md, and write the text at the head of the page."""
    runs = {
        source.run_id: _run(trial, source.run_id) for source in parents.values() if source.run_id
    }
    board = trial.board
    trial.log_text(_lineage(trial, recipe, parents, runs, version), "lineage.svg")
    scores = {row.name: row.tasks for row in board.rows} if board else None
    card = model_card(
        trial.name,
        [
            CardParent(name, str(redact(source.uri)), source.sha256, source.run_id)
            for name, source in parents.items()
        ],
        redact(recipe.weights_dict()),
        plan_digest=trial.plan_digest,
        scores=scores,
        part=board.part if board else "dev",
    )
    trial.log_text(card, "model_card.md")
    trial.describe(_description(trial, recipe, parents, runs, version))


def _description(
    trial: Trial,
    recipe: Recipe,
    parents: dict[str, Source],
    runs: dict[str, Run | None],
    version: int,
) -> str:
    registered = f"{trial.tracking.spec.registered_model}/{version}"
    lines = [
        f"A **{recipe.method.name}** merge of {_several(recipe.sources)}, registered as "
        f"`models:/{registered}`.{_result(trial)}",
        "",
        "| parent | from | training run |",
        "| --- | --- | --- |",
    ]
    for name, source in parents.items():
        lines.append(f"| {name} | `{redact(source.uri)}` | {_link(source.run_id, runs)} |")
    if trial.board is not None:
        lines[2:2] = [trial.board.markdown(), ""]
    lines += [
        "",
        f"Next: `mergeops promote {registered.split('/')[0]} --version {version}` asks the gate on "
        "the confirm part. Artifacts: recipe, lock, samples, plots/scores.png, lineage.svg, card.",
    ]
    return "\n".join(lines)


def _result(trial: Trial) -> str:
    board = trial.board
    own = next((row for row in board.rows if row.name == trial.name), None) if board else None
    if board is None or own is None:
        return ""
    text = f" Score on {board.part}: **{own.estimate}**"
    found = own.difference
    if found is None:
        return f"{text}."
    return (
        f"{text}, {found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}] against "
        f"{board.reference}."
    )


def _lineage(
    trial: Trial,
    recipe: Recipe,
    parents: dict[str, Source],
    runs: dict[str, Run | None],
    version: int,
) -> str:
    rows = trial.board.rows if trial.board else ()
    pooled = {row.name: row.estimate for row in rows}

    def node(name: str, source: Source) -> Node:
        run = runs.get(source.run_id or "")
        origin = f"run {source.run_id[:8]}" if source.run_id else _shortened(source.uri)
        weight = None
        if name in recipe.sources:
            default = getattr(recipe.method.parameters, "weight", None)
            weight = recipe.sources[name].parameters.get("weight", default)
        return Node(
            "base" if name == "base" else "source",
            name,
            origin,
            pooled.get(name),
            run.info.status if run else "",
            f"weight {weight:g}" if isinstance(weight, float) else "",
        )

    nodes = {name: node(name, source) for name, source in parents.items()}
    merge = Node(
        "merge",
        trial.name,
        f"run {trial.run_id[:8]}",
        pooled.get(trial.name),
    )
    model = trial.tracking.spec.registered_model
    registered = Node("version", f"{model} version {version}", f"models:/{model}/{version}")
    return lineage_svg(nodes.pop("base", None), list(nodes.values()), merge, registered)


def _run(trial: Trial, run_id: str) -> Run | None:
    return or_none(lambda: trial.tracking.client.get_run(run_id))


def _link(run_id: str | None, runs: dict[str, Run | None]) -> str:
    run = runs.get(run_id) if run_id else None
    if run is None:
        return f"`{run_id}`" if run_id else ""
    page = f"#/experiments/{run.info.experiment_id}/runs/{run_id}"
    return f"[{run.info.run_name}]({page}) {run.info.status}"


def _several(names: Any) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else str(last)


def _shortened(uri: str) -> str:
    # The end of a path tells more than its beginning.
    text = re.sub(r"^hf://[^/]+/", "", str(redact(uri)))
    return text if len(text) <= 29 else "…" + text[-28:]
