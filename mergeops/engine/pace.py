"""How fast this machine has merged and scored, so that it can be said how long more will take."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mergeops.checkpoint import replace_with

PACE = "pace.json"
MERGING, SCORING = "merging", "scoring"


@dataclass(frozen=True)
class Pace:
    """Work done and the time that it took."""

    amount: float
    """Bytes written; for scoring, items times bytes of the model, since a larger one is slower."""
    seconds: float

    def time_for(self, amount: float) -> float:
        """Seconds for another amount."""
        return amount * self.seconds / self.amount


def read_pace(work_dir: Path, kind: str) -> Pace | None:
    """The pace so far; None where nothing was done here before."""
    try:
        raw = json.loads((work_dir / PACE).read_text(encoding="utf-8"))
        pace = Pace(float(raw[kind]["amount"]), float(raw[kind]["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pace if pace.amount > 0 and pace.seconds > 0 else None


def note_pace(work_dir: Path, kind: str, amount: float, seconds: float) -> None:
    """Remember work that was just done; what is older counts half as much each time."""
    if amount <= 0 or seconds <= 0:
        return
    old = {each: read_pace(work_dir, each) for each in (MERGING, SCORING)}
    before = old[kind] or Pace(0, 0)
    paces = old | {kind: Pace(amount + before.amount / 2, seconds + before.seconds / 2)}
    text = json.dumps({each: asdict(pace) for each, pace in paces.items() if pace})
    # An estimate is worth no error.
    with suppress(OSError), replace_with(work_dir / PACE, sync=False) as partial:
        partial.write_text(text, encoding="utf-8")
