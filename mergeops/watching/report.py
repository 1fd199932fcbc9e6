"""A watch's digest, as text: what came in, what it contributed, what it cost, what is proposed."""

from __future__ import annotations

from collections import Counter

from mergeops.watching.spec import WatchSpec
from mergeops.watching.state import WatchState

MOST_RUNS = 40


def digest_text(spec: WatchSpec, state: WatchState) -> str:
    """The digest of a watch, in Markdown."""
    counts = Counter(run.outcome for run in state.runs.values())
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    trials = sum(record.trials for record in state.rounds)
    minutes = sum(record.seconds for record in state.rounds) / 60
    lines = [
        f"# Watch {spec.name}",
        "",
        f"Experiments: {', '.join(spec.experiments)}. {len(state.runs)} run(s) seen"
        + (f": {said}." if said else "."),
        f"{len(state.rounds)} round(s), {trials} trial(s), {minutes:.1f} minutes.",
        "",
        *_best(state),
        *_proposals(spec, state),
        *_runs(state),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _best(state: WatchState) -> list[str]:
    best = state.best
    if best is None:
        return ["No merge yet.", ""]
    of = f"{best.registered}, " if best.registered else ""
    dev = f"{best.dev:.3f} on dev" if best.dev is not None else "not scored"
    against = f"found against champion {best.champion}" if best.champion else "no champion yet"
    by = ", by " + best.recipe["method"]["name"] if best.recipe else ""
    around = ", searched around" if best.is_searched else ""
    return [f"Best so far: {of}{dev}, of {', '.join(best.sources)}{by}{around}; {against}.", ""]


def _proposals(spec: WatchSpec, state: WatchState) -> list[str]:
    if not state.proposed:
        return ["Nothing was proposed yet.", ""]
    lines = ["## Proposals", "", "| at | version | outcome | level |", "| --- | --- | --- | --- |"]
    for one in state.proposed:
        level = f"{one.level:.3g}" if one.level is not None else "-"
        lines.append(f"| {one.at[:16]} | {one.registered} | {_cell(one.outcome)} | {level} |")
    for sentence in state.proposed[-1].expected:
        lines += ["", f"Said beforehand: {sentence}"]
    return [*lines, ""]


def _runs(state: WatchState) -> list[str]:
    if not state.runs:
        return []
    newest = sorted(state.runs.values(), key=lambda run: (run.round, run.at), reverse=True)
    lines = ["## Runs", "", "| run | status | outcome | gain on dev | note |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for run in newest[:MOST_RUNS]:
        gain = f"{run.gain:+.3f}" if run.gain is not None else "-"
        cells = (_cell(run.name), run.status, run.outcome, gain, _cell(run.note))
        lines.append(f"| {' | '.join(cells)} |")
    if len(newest) > MOST_RUNS:
        lines.append(f"\n... and {len(newest) - MOST_RUNS} older ones.")
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:200]
