"""Progress on stderr: bars on a terminal, only the steps elsewhere; results never go here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Tick = Callable[[int, int], None]
"""Called with (done, total)."""


class Progress:
    """Shows the user what is being done.

    Args:
        quiet: show nothing at all.
        force_terminal: draw bars even when stderr is no terminal (for tests).
    """

    def __init__(self, *, quiet: bool = False, force_terminal: bool | None = None) -> None:
        self._quiet = quiet
        self._force_terminal = force_terminal

    def step(self, text: str) -> None:
        """Say one thing that happened or starts."""
        if not self._quiet:
            self._console().print(f"[dim]·[/] {_escape(text)}", highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, label: str, *, is_bytes: bool = False) -> Iterator[Tick]:
        """A bar that lives for the block; the block calls the tick with (done, total)."""
        console = None if self._quiet else self._console()
        if console is None or not console.is_terminal:
            yield lambda done, total: None
            return
        from rich import progress as bars

        amount = (
            (bars.DownloadColumn(), bars.TransferSpeedColumn())
            if is_bytes
            else (bars.MofNCompleteColumn(),)
        )
        with bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            *amount,
            bars.TimeRemainingColumn(),
            console=console,
            transient=True,
        ) as drawn:
            task = drawn.add_task(label, total=None)
            before = float("inf")

            def tick(done: int, total: int) -> None:
                nonlocal before
                if done < before:
                    # What an earlier try did is no speed of this one; the next file begins anew.
                    drawn.reset(task, completed=done, total=total)
                else:
                    drawn.update(task, completed=done, total=total)
                before = done

            yield tick

    def _console(self) -> Console:
        from rich.console import Console

        return Console(file=sys.stderr, force_terminal=self._force_terminal, emoji=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
