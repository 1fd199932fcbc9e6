"""The leaderboard of experiments: everything scored there, parents and merges together."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from mergeops.errors import TrackingError
from mergeops.recipe import TrackingSpec
from mergeops.report import Compared, LeftOut, make_leaderboard
from mergeops.scores import UNKNOWN
from mergeops.store import Tracking, connect
from mergeops.tracking.score_log import Scored, scored_runs

OTHER_QUESTIONS = (
    "answered other questions, or was scored by another metric: another task version, other tasks, "
    "another split, metric or filter"
)
OLD_KIND = (
    "has scores of an older mergeops, which took the metric of {} for a mean over items; run the "
    "command that scored it again"
)


def compare_experiments(
    spec: TrackingSpec,
    experiments: Sequence[str] = (),
    part: str = "dev",
    reference: str | None = None,
) -> Compared:
    """Rank every model of the experiments that was scored on the part.

    Only models that answered the same questions as the newest one of the first experiment can be
    compared; others are left out, by name. A parent that several experiments scored is one row.

    Args:
        spec: names the server.
        experiments: their names; none takes the one of ``spec``.
        part: dev or confirm.
        reference: name to take differences from; None takes the best parent.

    Raises:
        TrackingError: no such experiment, or nothing was scored in any.
        EvaluationError: no model is called ``reference``.
    """
    names = tuple(dict.fromkeys(experiments)) or (spec.experiment,)
    left_out: list[LeftOut] = []
    readable: list[Scored] = []
    links: dict[str, str] = {}
    for name in names:
        tracking = connect(dataclasses.replace(spec, experiment=name), create=False)
        readable += _read(tracking, part, left_out)
        if page := tracking.experiment_page():
            links[name] = page
    readable = _known(readable, left_out)
    if not readable:
        raise TrackingError(_nothing(names, part, left_out))
    first = readable[0].origin.experiment
    asked = _asked([scored for scored in readable if scored.origin.experiment == first][-1])
    same = []
    for scored in readable:
        if _asked(scored) == asked:
            same.append(scored)
        else:
            left_out.append(LeftOut(scored.name, scored.origin.experiment, OTHER_QUESTIONS))
    ranked = _labelled(_without_repeats(same))
    return Compared(names, make_leaderboard(ranked, reference), tuple(left_out), links)


def _read(tracking: Tracking, part: str, left_out: list[LeftOut]) -> list[Scored]:
    """What can be read; what cannot is added to ``left_out``."""

    def leave_out(name: str, error: TrackingError) -> None:
        reason = f"has scores that cannot be read: {error}"
        left_out.append(LeftOut(name, tracking.spec.experiment, reason))

    return scored_runs(tracking, part, leave_out)


def _known(models: Sequence[Scored], left_out: list[LeftOut]) -> list[Scored]:
    """Those of which it is known what their scores are of the items."""
    known = []
    for scored in models:
        old = [task.task for task in scored.scores.tasks.values() if task.kind == UNKNOWN]
        if old:
            reason = OLD_KIND.format(", ".join(old))
            left_out.append(LeftOut(scored.name, scored.origin.experiment, reason))
        else:
            known.append(scored)
    return known


def _asked(scored: Scored) -> tuple[Mapping[str, tuple[str, str]], tuple[str, ...]]:
    """The questions with the metrics, and how the answers are counted together."""
    questions = {name: (task.digest, task.metric) for name, task in scored.scores.tasks.items()}
    return questions, scored.scores.counted


def _without_repeats(models: Sequence[Scored]) -> list[Scored]:
    """A base or source once, however many experiments scored it: the first time."""
    seen: set[tuple[str, str]] = set()
    firsts = []
    for scored in models:
        sha256 = scored.origin.weights_sha256
        if scored.kind == "merge" or not sha256 or (scored.kind, sha256) not in seen:
            firsts.append(scored)
        seen.add((scored.kind, sha256))
    return firsts


def _labelled(models: Sequence[Scored]) -> list[Scored]:
    """The models with their experiment or run in the name where others have the same name."""
    everywhere = Counter(scored.name for scored in models)
    here = Counter((scored.name, scored.origin.experiment) for scored in models)
    labelled = []
    for scored in models:
        place = scored.origin.experiment
        if here[scored.name, place] > 1:
            place = scored.origin.run_id[:6]
        label = f"{scored.name} ({place})" if everywhere[scored.name] > 1 else scored.name
        labelled.append(dataclasses.replace(scored, name=label))
    return labelled


def _nothing(names: Sequence[str], part: str, left_out: Sequence[LeftOut]) -> str:
    which = f"experiment {names[0]!r} has" if len(names) == 1 else f"experiments {names} have"
    if left_out:
        first = left_out[0]
        return f"{which} no readable scores on the {part} part; {first.name}: {first.reason}"
    advice = "run a merge with evaluate.tasks=[...]" if part == "dev" else "promote a merge first"
    return f"{which} no scores on the {part} part yet; {advice}"
