"""From single measurements to the table of RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.jobs import AS_CALLED, CONTESTANTS, EARLIER
from benchmarks.measure import Measurement


@dataclass(frozen=True)
class Aims:
    """What a method is to reach; None where nothing is aimed at."""

    faster: float | None = None
    """Times faster than mergekit, with its arithmetic ..."""
    as_called: float | None = None
    """... and with its own."""
    floors: float | None = None
    """Times of the floor it may take."""
    earlier: float | None = None
    """Times faster than mergeops at 45cf147, with mergekit's arithmetic."""


AIMS = {
    "linear": Aims(4.0, floors=1.3),
    "task_arithmetic": Aims(4.0, floors=1.3),
    "slerp": Aims(5.0, floors=1.3),
    "nuslerp": Aims(5.0),
    "model_stock": Aims(5.0),
    "dare_linear": Aims(8.0),
    "dare_ties": Aims(8.0, as_called=25.0),
    "ties": Aims(15.0, as_called=40.0),
    "breadcrumbs": Aims(15.0, as_called=35.0),
    "della": Aims(15.0, as_called=40.0),
    "arcee_fusion": Aims(earlier=5.0),
    "ram": Aims(earlier=5.0),
    "ramplus_tl": Aims(earlier=5.0),
    "sce": Aims(earlier=5.0),
    "karcher": Aims(earlier=3.0),
    "multislerp": Aims(earlier=3.0),
    "nearswap": Aims(earlier=3.0),
    "passthrough": Aims(earlier=3.0),
}
HEADER = (
    "| method | pairs | mergekit | mergeops | floor | times faster than mergekit | to reach "
    "| times the floor | at most | processor s, mergekit / mergeops "
    "| peak MB, mergekit / mergeops | as called | times faster than mergekit as called | to reach "
    "| earlier mergeops | times faster than it | to reach |"
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
    order = list(AIMS)
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
        aims = AIMS[row.method]
        cells = [
            row.method,
            str(row.pairs),
            *(str(row.wall[name]) for name in CONTESTANTS),
            str(row.faster),
            _aim(aims.faster, row.faster),
            str(row.floors),
            _aim(aims.floors, row.floors, is_most=True),
            processor,
            memory,
            *_beside_cells(row.as_called, aims.as_called),
            *_beside_cells(row.earlier, aims.earlier),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _beside_cells(found: tuple[Spread, Spread] | None, aim: float | None) -> list[str]:
    if found is None:
        return ["-", "-", "-"]
    seconds, ratio = found
    return [str(seconds), str(ratio), _aim(aim, ratio)]


def _aim(number: float | None, found: Spread, *, is_most: bool = False) -> str:
    if number is None:
        return "-"
    is_reached = found.middle <= number if is_most else found.middle >= number
    return f"{number:g}: {'reached' if is_reached else 'not reached'}"
