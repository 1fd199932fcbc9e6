"""Whether a round would find anything to do: asked before one is queued, and cheap."""

from __future__ import annotations

import datetime
from pathlib import Path

from mergeops import promotion
from mergeops.recipe import compose
from mergeops.store import Tracking, connect_to_server
from mergeops.watching.poll import newly_ended
from mergeops.watching.spec import WatchSpec
from mergeops.watching.state import Best, WatchState


def has_work(spec: WatchSpec, state: WatchState, config_dir: Path | None = None) -> bool:
    """Whether a run ended since, a batch is full, or a merge can be searched around or proposed.

    Raises:
        MergeopsError: MLflow cannot be asked, or the watch's recipe is wrong.
    """
    if len(state.waiting()) >= spec.batch or is_to_search(spec, state.best):
        return True
    settings = compose(spec.overrides, config_dir=config_dir).tracking
    tracking = connect_to_server(settings)
    if is_to_propose(spec, state, tracking, settings.registered_model):
        return True
    return any(
        newly_ended(
            tracking,
            experiment,
            state.cursors.get(experiment, 0),
            state.runs,
            filter_string=spec.filter,
            silent_after_s=spec.silent_after_s,
        )[0]
        for experiment in spec.experiments
    )


def is_to_search(spec: WatchSpec, best: Best | None) -> bool:
    """Whether the best merge was found by the greedy step, and nothing was tried around it yet."""
    if best is None or best.is_searched or not spec.budget.search:
        return False
    return bool(best.registered) and len(best.sources) > 1


def is_to_propose(spec: WatchSpec, state: WatchState, tracking: Tracking, name: str) -> bool:
    """Whether the best merge was not put forward yet, and now can be."""
    best = state.best
    if best is None or not best.registered or state.held == best.plan_digest:
        return False
    if any(one.plan_digest == best.plan_digest for one in state.proposed):
        return False
    if uses_this_month(state) >= spec.budget.confirm_uses:
        return False
    return promotion.read_history(tracking, name).waiting is None


def uses_this_month(state: WatchState) -> int:
    """How often the watch opened the confirm part."""
    month = datetime.datetime.now(datetime.UTC).isoformat()[:7]
    return sum(one.opened and one.at[:7] == month for one in state.proposed)
