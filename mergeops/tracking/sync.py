"""Log the trials that were kept on disk while the MLflow server was away.

Nothing is merged or scored here: a trial that lacks either is left to its own command. Each is
logged by the same steps as ``pipeline.run``, so doing it twice is safe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.checkpoint import adapter_sha256, is_adapter, weights_sha256
from mergeops.errors import AwayError, MergeopsError, TrackingError
from mergeops.progress import Progress
from mergeops.redact import redact
from mergeops.report import leaderboard_of, standing_of
from mergeops.store import connect
from mergeops.tracking.pending import Pending, pending_files, read_pending
from mergeops.tracking.trial_page import log_leaderboard, log_unregistered, register_trial
from mergeops.tracking.trials import open_kept

UNFINISHED = "its merge or its scores are not finished; run its command again"


@dataclass(frozen=True)
class Synced:
    """What became of one kept trial."""

    name: str
    plan_digest: str
    outcome: str
    """logged, waiting (a dry run), unfinished or failed."""
    server: str = ""
    """That it is meant for or was logged to, with its workspace; without credentials."""
    run_id: str = ""
    registered: str = ""
    """NAME/VERSION; empty where no version was wanted."""
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)


def sync_trials(
    output_dir: Path,
    progress: Progress,
    *,
    tracking_uri: str | None = None,
    workspace: str | None = None,
    dry_run: bool = False,
) -> list[Synced]:
    """Log every finished trial below ``output_dir``, oldest first.

    Args:
        output_dir: where the trials' commands kept their work.
        progress: where to show what is being done.
        tracking_uri: another server than the one that each was meant for.
        workspace: another workspace than the one that each was meant for; empty is the server's
            default. None with another server is the workspace of that name there.
        dry_run: only say what is there.

    Returns:
        One result a trial. A damaged one is among the failed, and named by its folder.
    """
    results: list[Synced] = []
    away: dict[tuple[str, str | None], AwayError] = {}
    for path in pending_files(output_dir):
        try:
            kept = read_pending(path)
        except TrackingError as error:
            folder = path.parent.name
            results.append(Synced(folder, folder, "failed", problem=str(error)))
            continue
        kept.uri = tracking_uri or kept.uri
        kept.workspace = kept.workspace if workspace is None else workspace
        place = (kept.uri, kept.workspace)
        if not kept.is_ready:
            results.append(_result(kept, "unfinished", problem=UNFINISHED))
        elif dry_run:
            results.append(_result(kept, "waiting", problem=kept.reason))
        elif place in away:
            results.append(_result(kept, "failed", problem=str(away[place])))
        else:
            try:
                results.append(_log(kept, progress))
            except AwayError as error:
                results.append(_result(kept, "failed", problem=str(error)))
                # Others that are meant for the same server would each wait in vain.
                away[place] = error
            except MergeopsError as error:
                results.append(_result(kept, "failed", problem=str(error)))
    return results


def raise_if_failed(results: Sequence[Synced]) -> None:
    """Raise where a trial could not be logged.

    Raises:
        TrackingError: with the first problem.
    """
    failed = [result for result in results if result.outcome == "failed"]
    if failed:
        raise TrackingError(
            f"{len(failed)} of {len(results)} trials could not be logged; {failed[0].name}: "
            f"{failed[0].problem}"
        )


def _log(kept: Pending, progress: Progress) -> Synced:
    checkpoint = _checked(kept)
    spec = dataclasses.replace(
        kept.recipe.tracking, uri=kept.uri, workspace=kept.workspace, offline=False
    )
    if kept.registry_uri is not None:
        # Not what MLFLOW_REGISTRY_URI says by now.
        spec = dataclasses.replace(spec, registry_uri=kept.registry_uri or kept.uri)
    tracking = connect(spec)
    kept.uri, kept.workspace = tracking.uri, tracking.workspace
    name = (kept.registration or {})["name"]
    with (
        progress.bar(f"logging {kept.name}", is_bytes=True) as tick,
        open_kept(tracking, kept) as log,
    ):
        log.log_model(checkpoint, weights_sha256=str(kept.weights_sha256), progress=tick)
        if kept.measures:
            log.log_measures(kept.measures)
        for parent, scores in kept.parents.items():
            log.log_parent(kept.inputs[parent], scores)
        if kept.scores is not None:
            log.log_scores(kept.scores)
            board = leaderboard_of({kept.name: kept.scores}, kept.parents)
            log_leaderboard(log, board, standing_of(kept.scores, kept.parents))
        for path in sorted(p for p in kept.artifacts.rglob("*") if p.is_file()):
            log.log_file(path, path.relative_to(kept.artifacts).as_posix())
        version = None
        if name:
            version = register_trial(log, name)
        else:
            log_unregistered(log)
    registered = f"{name}/{version}" if version else ""
    return _result(kept, "logged", run_id=log.run_id, registered=registered)


def _checked(kept: Pending) -> Path:
    path = kept.checkpoint
    if path is None or not path.is_dir():
        raise TrackingError(f"its merge {path} is gone; run its command again")
    if kept.base is not None and is_adapter(path):
        sha256 = adapter_sha256(path, kept.base.sha256)
    else:
        sha256 = weights_sha256(path)
    if sha256 != kept.weights_sha256:
        raise TrackingError(
            f"the weights in {path} are no longer those that were merged (sha256 {sha256[:12]}..., "
            f"not {str(kept.weights_sha256)[:12]}...); remove it and run its command again"
        )
    return path


def _result(kept: Pending, outcome: str, **facts: str) -> Synced:
    within = f", workspace {kept.workspace}" if kept.workspace else ""
    server = f"{redact(kept.uri)}{within}"
    return Synced(kept.name, kept.plan_digest, outcome, server, **facts)
