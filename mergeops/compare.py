"""The leaderboard of experiments: everything scored there, parents and merges together."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops.errors import TrackingError
from mergeops.report.leaderboard import Entry, Leaderboard, Origin, leaderboard
from mergeops.settings import TrackingSpec

if TYPE_CHECKING:
    from mergeops.tracking.scores import Scored

OTHER_QUESTIONS = "answered other questions: another task version, other tasks or another split"


@dataclass(frozen=True)
class LeftOut:
    """A scored model that cannot stand on the leaderboard."""

    name: str
    experiment: str
    reason: str


@dataclass(frozen=True)
class Compared:
    """Models of one or more experiments that answered the same questions."""

    experiments: tuple[str, ...]
    board: Leaderboard
    left_out: tuple[LeftOut, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for ``--json``."""
        return {
            **self.board.to_dict(),
            "experiments": list(self.experiments),
            "models_left_out": [dataclasses.asdict(one) for one in self.left_out],
        }


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
    readable = [
        pair
        for name in names
        for pair in _read(dataclasses.replace(spec, experiment=name), part, left_out)
    ]
    if not readable:
        raise TrackingError(_nothing(names, part, left_out))
    first = readable[0][1].experiment
    asked = _asked([scored for scored, origin in readable if origin.experiment == first][-1])
    same = []
    for scored, origin in readable:
        if _asked(scored) == asked:
            same.append((scored, origin))
        else:
            left_out.append(LeftOut(scored.name, origin.experiment, OTHER_QUESTIONS))
    same = _without_repeats(same)
    labels = _labels(same)
    entries = [
        Entry(label, scored.role, scored.scores, origin)
        for label, (scored, origin) in zip(labels, same, strict=True)
    ]
    return Compared(names, leaderboard(entries, reference), tuple(left_out))


def _read(spec: TrackingSpec, part: str, left_out: list[LeftOut]) -> list[tuple[Scored, Origin]]:
    """What can be read; what cannot is added to ``left_out``."""
    from mergeops.tracking.connection import connect
    from mergeops.tracking.links import run_page

    tracking = connect(spec, create=False)
    found = tracking.scored(
        part,
        lambda name, error: left_out.append(
            LeftOut(name, spec.experiment, f"has scores that cannot be read: {error}")
        ),
    )
    is_served = tracking.uri.startswith("http")
    return [
        (
            scored,
            Origin(
                spec.experiment,
                scored.run_id,
                scored.model_id,
                scored.weights_sha256,
                run_page(tracking, scored.run_id) if is_served else None,
            ),
        )
        for scored in found
    ]


def _asked(scored: Scored) -> Mapping[str, str]:
    return {name: task.digest for name, task in scored.scores.tasks.items()}


def _without_repeats(found: Sequence[tuple[Scored, Origin]]) -> list[tuple[Scored, Origin]]:
    """A base or source once, however many experiments scored it: the first time."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for scored, origin in found:
        key = (scored.role, scored.weights_sha256)
        if scored.role == "merge" or not scored.weights_sha256 or key not in seen:
            kept.append((scored, origin))
        seen.add(key)
    return kept


def _labels(found: Sequence[tuple[Scored, Origin]]) -> list[str]:
    """Each model's name, with its experiment or run where others have the same name."""
    everywhere = Counter(scored.name for scored, _ in found)
    here = Counter((scored.name, origin.experiment) for scored, origin in found)
    return [
        scored.name
        if everywhere[scored.name] == 1
        else f"{scored.name} ({origin.experiment})"
        if here[scored.name, origin.experiment] == 1
        else f"{scored.name} ({origin.run_id[:6]})"
        for scored, origin in found
    ]


def _nothing(names: Sequence[str], part: str, left_out: Sequence[LeftOut]) -> str:
    which = f"experiment {names[0]!r} has" if len(names) == 1 else f"experiments {names} have"
    if left_out:
        one = left_out[0]
        return f"{which} no readable scores on the {part} part; {one.name}: {one.reason}"
    advice = "run a merge with evaluate.tasks=[...]" if part == "dev" else "promote a merge first"
    return f"{which} no scores on the {part} part yet; {advice}"
