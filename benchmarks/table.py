"""From single measurements to the table of RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.jobs import AS_CALLED, CONTESTANTS, EARLIER
from benchmarks.measure import Measurement

TARGETS = {
    "linear": 4.0,
    "task_arithmetic": 4.0,
    "slerp": 5.0,
    "nuslerp": 5.0,
    "model_stock": 5.0,
    "dare_linear": 8.0,
    "dare_ties": 8.0,
    "ties": 15.0,
    "breadcrumbs": 15.0,
    "della": 15.0,
}
"""How many times faster than mergekit each method is to be."""
FLOORS = {"linear": 1.5, "task_arithmetic": 1.5}
"""How many times the floor a method may take."""
HEADER = (
    "| method | pairs | mergekit | mergeops | floor | times faster than mergekit | to reach "
    "| times the floor | at most | processor s, mergekit / mergeops "
    "| peak MB, mergekit / mergeops | as called | times faster than mergekit as called "
    "| earlier mergeops | times faster than it |"
)


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some numbers."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one number."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}..{self.high:.2f})"


@dataclass(frozen=True)
class Row:
    """One method."""

    method: str
    pairs: int
    wall: dict[str, Spread]
    """Contestant -> seconds."""
    faster: Spread
    """mergekit's time over that of mergeops, pair by pair."""
    floors: Spread
    """The time of mergeops over the floor's, pair by pair."""
    cpu: dict[str, float]
    """Contestant -> median processor seconds."""
    anonymous: dict[str, int]
    """Contestant -> largest peak in bytes."""
    as_called: tuple[Spread, Spread] | None
    """Seconds without mergekit's arithmetic, and mergekit's time over them; None where no pair has
    them."""
    earlier: tuple[Spread, Spread] | None
    """Seconds of an earlier mergeops, and their ratio to those of this one; None as above."""


def rows(measurements: Iterable[Measurement]) -> list[Row]:
    """A row for each method, of the pairs that all contestants have run."""
    found: dict[str, dict[int, dict[str, Measurement]]] = {}
    for one in measurements:
        found.setdefault(one.method, {}).setdefault(one.pair, {})[one.contestant] = one
    made = []
    for method, by_pair in found.items():
        pairs = [p for p in by_pair.values() if p.keys() >= set(CONTESTANTS)]
        if pairs:
            made.append(_row(method, pairs))
    order = list(TARGETS)
    return sorted(made, key=lambda row: order.index(row.method))


def _row(method: str, pairs: Sequence[dict[str, Measurement]]) -> Row:
    def each(number: Callable[[Measurement], float], name: str) -> list[float]:
        return [number(pair[name]) for pair in pairs]

    return Row(
        as_called=_beside(pairs, AS_CALLED, slower="mergekit", quicker=AS_CALLED),
        earlier=_beside(pairs, EARLIER, slower=EARLIER, quicker="mergeops"),
        method=method,
        pairs=len(pairs),
        wall={name: Spread.of(each(lambda m: m.wall, name)) for name in CONTESTANTS},
        faster=Spread.of([pair["mergekit"].wall / pair["mergeops"].wall for pair in pairs]),
        floors=Spread.of([pair["mergeops"].wall / pair["floor"].wall for pair in pairs]),
        cpu={name: median(each(lambda m: m.cpu, name)) for name in CONTESTANTS},
        anonymous={name: max(pair[name].anonymous for pair in pairs) for name in CONTESTANTS},
    )


def _beside(
    pairs: Sequence[dict[str, Measurement]], name: str, *, slower: str, quicker: str
) -> tuple[Spread, Spread] | None:
    """Seconds of a contestant that some pairs have, and one contestant's time over another's."""
    own = [pair for pair in pairs if name in pair]
    if not own:
        return None
    ratios = [pair[slower].wall / pair[quicker].wall for pair in own]
    return Spread.of([pair[name].wall for pair in own]), Spread.of(ratios)


def markdown(found: Sequence[Row]) -> str:
    """The table; times are in seconds, as median (smallest..largest)."""
    lines = [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    for row in found:
        memory = " / ".join(f"{row.anonymous[n] / 1e6:.0f}" for n in ("mergekit", "mergeops"))
        processor = " / ".join(f"{row.cpu[n]:.1f}" for n in ("mergekit", "mergeops"))
        least, most = TARGETS[row.method], FLOORS.get(row.method)
        cells = [
            row.method,
            str(row.pairs),
            *(str(row.wall[name]) for name in CONTESTANTS),
            str(row.faster),
            _aim(least, row.faster.middle >= least),
            str(row.floors),
            "-" if most is None else _aim(most, row.floors.middle <= most),
            processor,
            memory,
            *(map(str, row.as_called or ("-", "-"))),
            *(map(str, row.earlier or ("-", "-"))),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _aim(number: float, is_reached: bool) -> str:
    return f"{number:g}: {'reached' if is_reached else 'not reached'}"
