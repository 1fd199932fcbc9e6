"""What a person finds on a trial's page in MLflow: text, leaderboard, plot, lineage and card."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from mergeops.checkpoint import is_adapter
from mergeops.errors import TrackingError
from mergeops.redact import redact
from mergeops.report import (
    CardParent,
    Leaderboard,
    Node,
    Row,
    Standing,
    board_markdown,
    lineage_svg,
    model_card,
    scores_figure,
)
from mergeops.sources import Source, short_name
from mergeops.store import or_none
from mergeops.tracking.pending import Pending
from mergeops.tracking.tracked_trial import TrackedTrial, step
from mergeops.tracking.trial_inputs import weight_of
from mergeops.tracking.versions import register, shown

if TYPE_CHECKING:
    from mlflow.entities import Run


def log_leaderboard(
    trial: TrackedTrial, board: Leaderboard, standing: Standing | None = None
) -> None:
    """Log the merge among its parents: leaderboard.md, leaderboard.json and plots/scores.png.

    Args:
        standing: what the numbers say of it, for the text at the head of the page.
    """
    trial.board, trial.standing = board, standing
    trial.log_text(board_markdown(board), "leaderboard.md")
    trial.log_json(board.to_dict(), "leaderboard.json")
    trial.log_figure(scores_figure(board), "plots/scores.png")


def register_trial(trial: TrackedTrial, name: str | None = None) -> int | None:
    """Register the merge, or find its version; then write the run's lineage, card and text.

    Args:
        trial: its model is logged.
        name: the registered model; None takes ``tracking.registered_model``.

    Returns:
        The version; None where the server is away.
    """
    return _register(trial, name or trial.tracking.spec.registered_model)


def log_unregistered(trial: TrackedTrial) -> None:
    """Write the run's lineage, card and text of a merge that becomes no version."""
    _close(trial, "")


@step(note=Pending.note_registration)
def _close(trial: TrackedTrial, name: str) -> None:
    if trial.pending is not None:
        _log_page(trial, trial.pending, None)


@step(note=Pending.note_registration)
def _register(trial: TrackedTrial, name: str) -> int:
    if trial.model_id is None:
        raise TrackingError(f"trial {trial.name!r} has no model yet; log it before registering")
    version = register(
        trial.tracking, name, trial.run_id, trial.model_id, trial.name, trial.standing
    )
    if trial.pending is not None:
        _log_page(trial, trial.pending, version)
    return version


def _log_page(trial: TrackedTrial, kept: Pending, version: int | None) -> None:
    """Log lineage.svg and model_card.md, and write the text at the head of the page."""
    run_ids = [source.run_id for source in kept.inputs.values() if source.run_id]
    client, board = trial.tracking.client, trial.board
    runs = {run_id: or_none(partial(client.get_run, run_id)) for run_id in run_ids}
    trial.log_text(_lineage(trial, kept, runs, version), "lineage.svg")
    card = model_card(
        trial.name,
        [_card_parent(name, source) for name, source in kept.inputs.items()],
        redact(kept.recipe.weights_dict()),
        plan_digest=trial.plan_digest,
        scores={row.name: row.tasks for row in board.rows} if board else None,
        part=board.part if board else "dev",
        is_adapter=kept.checkpoint is not None and is_adapter(kept.checkpoint),
    )
    trial.log_text(card, "model_card.md")
    score = _own_row(trial)
    is_dev = board is not None and board.part == "dev"
    if said := shown(score.estimate if score and is_dev else None, trial.standing):
        trial.set_tags(**said)
    trial.describe(_description(trial, kept, runs, version))


def _card_parent(name: str, source: Source) -> CardParent:
    uri = str(redact(source.uri))
    return CardParent(name, uri, source.sha256, source.run_id, short_name(uri))


def _description(
    trial: TrackedTrial, kept: Pending, runs: Mapping[str, Run | None], version: int | None
) -> str:
    model = trial.tracking.spec.registered_model
    lines = []
    if trial.standing is not None:
        against = [f"**{str(each).capitalize()}.**" for each in trial.standing.against]
        lines += [" ".join(against), ""]
    registered = f"registered as `models:/{model}/{version}`" if version else "not registered"
    lines += [
        f"{_made(kept)}, {registered}.{_result(trial)}",
        "",
    ]
    if trial.board is not None:
        lines += [board_markdown(trial.board), ""]
    lines += ["| parent | from | training run |", "| --- | --- | --- |"]
    for name, source in kept.inputs.items():
        lines.append(f"| {name} | `{redact(source.uri)}` | {_link(source.run_id, runs)} |")
    lines += [
        "",
        f"Next: {_next(trial, version)}. Artifacts: recipe, lock, samples, plots/scores.png, "
        "lineage.svg, card.",
    ]
    return "\n".join(lines)


def _next(trial: TrackedTrial, version: int | None) -> str:
    standing, model = trial.standing, trial.tracking.spec.registered_model
    if trial.board is None:
        return "score it with `evaluate.tasks=[...]`; so far nothing says how good it is"
    said = standing.advice if standing else ""
    if version is None or (standing is not None and not standing.is_ahead):
        return said
    promote = f"`mergeops promote {model} --version {version}` asks the gate on the confirm part"
    return f"{said}; {promote}" if said else promote


def _made(kept: Pending) -> str:
    """What was made of what."""
    recipe = kept.recipe
    if recipe.tool is not None:
        return f"Made by `mergeops {recipe.made_by}` of {_several(list(kept.inputs))}"
    return f"A **{recipe.made_by}** merge of {_several(_weighted(kept))}"


def _weighted(kept: Pending) -> list[str]:
    """The sources by name, with the weights that they have."""
    return [
        name if (weight := _weight(kept, name)) is None else f"{name} ({weight})"
        for name in kept.recipe.sources
    ]


def _weight(kept: Pending, name: str) -> str | None:
    weight = weight_of(kept.recipe, name)
    return None if weight is None else f"weight {weight:g}"


def _own_row(trial: TrackedTrial) -> Row | None:
    rows = trial.board.rows if trial.board else ()
    return next((row for row in rows if row.name == trial.name), None)


def _result(trial: TrackedTrial) -> str:
    own = _own_row(trial)
    if trial.board is None or own is None:
        return ""
    return f" Score on {trial.board.part}: **{own.estimate}**."


def _lineage(
    trial: TrackedTrial, kept: Pending, runs: Mapping[str, Run | None], version: int | None
) -> str:
    rows = trial.board.rows if trial.board else ()
    pooled = {row.name: row.estimate for row in rows}

    def node(name: str, source: Source) -> Node:
        run = runs.get(source.run_id or "")
        origin = f"run {source.run_id[:8]}" if source.run_id else _shortened(source.uri)
        return Node(
            "base" if name == "base" else "source",
            name,
            origin,
            pooled.get(name),
            run.info.status if run else "",
            (_weight(kept, name) if name in kept.recipe.sources else None) or "",
        )

    nodes = {name: node(name, source) for name, source in kept.inputs.items()}
    merge = Node("merge", trial.name, f"run {trial.run_id[:8]}", pooled.get(trial.name))
    model = trial.tracking.spec.registered_model
    if version is None:
        return lineage_svg(nodes.pop("base", None), list(nodes.values()), merge)
    registered = Node("version", f"{model} version {version}", f"models:/{model}/{version}")
    return lineage_svg(nodes.pop("base", None), list(nodes.values()), merge, registered)


def _link(run_id: str | None, runs: Mapping[str, Run | None]) -> str:
    run = runs.get(run_id) if run_id else None
    if run is None:
        return f"`{run_id}`" if run_id else ""
    page = f"#/experiments/{run.info.experiment_id}/runs/{run_id}"
    return f"[{run.info.run_name}]({page}) {run.info.status}"


def _several(names: Any) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else str(last)


def _shortened(uri: str) -> str:
    shown = str(redact(uri))
    # The end of a path tells more than its beginning, the name of a model more than its owner.
    text = (short_name(shown) or "").partition("/")[2] or shown
    return text if len(text) <= 29 else "…" + text[-28:]
