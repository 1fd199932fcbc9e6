"""In which order a study asked its sampler and told it, on disk: what proposes depends on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

ASK, TELL = "ask", "tell"


class Order:
    """The order of one study; it is added to as the study goes on.

    Args:
        file: JSON lines of [event, number of the proposal].
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> Iterator[tuple[str, int]]:
        """What was asked and told before; a line that a crash tore is removed."""
        if not self._file.is_file():
            return
        lines = self._file.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):
            self._file.write_text("".join(whole), encoding="utf-8")
        for line in whole:
            event, number = json.loads(line)
            yield event, number

    def note(self, event: str, number: int) -> None:
        """Add what was done."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([event, number]) + "\n")
