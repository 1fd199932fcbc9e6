"""Watches: runs that ended are adopted, checked and tried, and what is better is proposed.

    spec     what a watch is told
    state    what it knows
    poll     which runs ended since it looked last
    adopting how they become candidates
    due      whether a round would find anything to do
    trying   a candidate, added to the best merge; a small search around what comes of it
    round    one look, and all that follows from it
    report   what it tells people

Stands on: adoption, errors, methods, pipeline, progress, promotion, recipe, schema, scores,
search, sources, store, tools, tracking.
"""

from mergeops.watching.due import has_work
from mergeops.watching.poll import EndedRun, newly_ended
from mergeops.watching.report import digest_text
from mergeops.watching.round import Round, run_round
from mergeops.watching.spec import WatchSpec, read_watch_file
from mergeops.watching.state import WatchState

__all__ = [
    "EndedRun",
    "Round",
    "WatchSpec",
    "WatchState",
    "digest_text",
    "has_work",
    "newly_ended",
    "read_watch_file",
    "run_round",
]
