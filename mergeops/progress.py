"""Progress on stderr: bars on a terminal, lines or JSON elsewhere; results never go here."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

Tick = Callable[[int, int], None]
"""Called with (done, total)."""
KEPT = "\n\t\u00a0\u3000"
"""Signs that are shown as they are, though Python does not call them printable."""
MODES = ("auto", "bar", "lines", "json", "none")
"""auto: bars on a terminal, elsewhere lines."""
_TERMINALS = {"FORCE_COLOR", "TTY_COMPATIBLE"}
"""Variables that make rich take anything for a terminal."""
EVERY_S = 30.0
"""Between two lines of one piece of work: a log shows that it lives, and stays short."""


def printable(text: str) -> str:
    """The text, with signs that a terminal acts on spelled out: a name may come from anybody."""
    return "".join(c if c.isprintable() or c in KEPT else repr(c)[1:-1] for c in text)


def new_console(file: TextIO | None = None, *, force_terminal: bool | None = None) -> Console:
    """A terminal that shows every text as it is.

    Args:
        file: None is stdout, whatever that is when something is printed.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                is_own = segment.control is not None
                yield segment if is_own else Segment(printable(segment.text), segment.style)

    # A name between colons is no picture, and a number has no colour.
    return Plain(file=file, force_terminal=force_terminal, highlight=False, emoji=False)


@dataclass
class Task:
    """A piece of work that is shown; call it with (done, total)."""

    label: str
    is_bytes: bool = False
    done: int = 0
    total: int = 0
    """0 until it is known."""
    began: float = field(default_factory=time.monotonic)
    changed: Callable[[], None] = lambda: None

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self.changed()

    def rename(self, label: str) -> None:
        """Say what is worked on now."""
        self.label = label
        self.changed()

    def to_dict(self) -> dict[str, object]:
        """As JSON types."""
        return {
            "task": self.label,
            "done": self.done,
            "total": self.total or None,
            "unit": "bytes" if self.is_bytes else None,
            "seconds": round(time.monotonic() - self.began, 1),
        }

    def __str__(self) -> str:
        spent = time.monotonic() - self.began
        said = [f"{self.label}: {_clock(spent)} so far"]
        if self.total:
            share = self.done / self.total
            said.insert(0, f"{self.label}: {self._amount()} ({share:.0%})")
            said[1] = f"{_clock(spent)} so far"
            if 0 < self.done < self.total:
                said.append(f"about {_clock(spent * (1 - share) / share)} left")
        return ", ".join(said)

    def _amount(self) -> str:
        if not self.is_bytes:
            return f"{self.done} of {self.total}"
        for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
            if self.total >= size:
                return f"{self.done / size:.1f} of {self.total / size:.1f} {unit}"
        return f"{self.done} of {self.total} bytes"


@dataclass(frozen=True)
class AtWork:
    """What one worker of several does."""

    unit: str
    done: int = 0
    total: int = 0
    """0 until it is known."""

    def __str__(self) -> str:
        return f"{self.unit} ({self.done / self.total:.0%})" if self.total else self.unit


class Progress:
    """Shows the user what is being done.

    Args:
        mode: one of ``MODES``.
        quiet: show nothing at all, whatever the mode.
        force_terminal: draw bars even when stderr is no terminal (for tests).
        every_s: seconds between two lines.
    """

    def __init__(
        self,
        mode: str = "auto",
        *,
        quiet: bool = False,
        force_terminal: bool | None = None,
        every_s: float = EVERY_S,
    ) -> None:
        self._mode = "none" if quiet else mode
        self._force_terminal = True if mode == "bar" else force_terminal
        self._every_s = every_s
        self._workers: dict[str, AtWork] = {}
        self._workers_changed: Callable[[], None] = lambda: None

    def at_work(self, worker: str, unit: str, done: int = 0, total: int = 0) -> None:
        """Say what one worker of several does: it stands below the bar until it is said again."""
        self._workers[worker] = AtWork(unit, done, total)
        self._workers_changed()

    def at_rest(self, worker: str) -> None:
        """Say that a worker has nothing to do, or is gone."""
        self._workers.pop(worker, None)
        self._workers_changed()

    def step(self, text: str) -> None:
        """Say one thing that happened or starts."""
        if self._mode == "json":
            self._write(json.dumps({"step": text}))
        elif self._mode != "none" and self._is_terminal():
            self._console().print(f"[dim]·[/] {_escape(text)}", soft_wrap=True)
        elif self._mode != "none":
            self._write(f"· {text}")

    @contextmanager
    def bar(self, label: str, *, is_bytes: bool = False) -> Iterator[Task]:
        """What is worked on in the block, which calls the task with (done, total)."""
        task = Task(label, is_bytes)
        if self._mode == "none":
            yield task
        elif self._mode in ("auto", "bar") and self._is_terminal():
            with self._drawn(task):
                yield task
        else:
            with self._told(task):
                yield task

    @contextmanager
    def _told(self, task: Task) -> Iterator[None]:
        """A line every half minute, also where nothing moves: it is still at work. A program is
        told of the beginning and the end, too."""
        ended, is_json = threading.Event(), self._mode == "json"

        def tell() -> None:
            workers = sorted(self._workers.copy().items())
            if is_json:
                said = [{"worker": name, **asdict(at_work)} for name, at_work in workers]
                self._write(json.dumps(task.to_dict() | ({"workers": said} if said else {})))
            else:
                self._write("; ".join([f"· {task}", *(f"{name}: {at}" for name, at in workers)]))

        def keep_telling() -> None:
            while not ended.wait(self._every_s):
                tell()

        if is_json:
            tell()
        teller = threading.Thread(target=keep_telling, name="progress", daemon=True)
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join()
            if is_json:
                tell()

    @contextmanager
    def _drawn(self, task: Task) -> Iterator[None]:
        from rich import progress as bars

        with bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            *_amounts(task.is_bytes),
            bars.TimeRemainingColumn(),
            console=self._console(),
            transient=True,
        ) as drawn:
            number = drawn.add_task(task.label, total=None)
            before = float("inf")

            def redraw() -> None:
                nonlocal before
                total, label = task.total or None, task.label
                if task.done < before:
                    # What an earlier try did is no speed of this one; the next file begins anew.
                    drawn.reset(number, completed=task.done, total=total, description=label)
                else:
                    drawn.update(number, completed=task.done, total=total, description=label)
                before = task.done

            rows: dict[str, bars.TaskID] = {}

            def redraw_workers() -> None:
                workers = self._workers.copy()
                for name in [name for name in rows if name not in workers]:
                    drawn.remove_task(rows.pop(name))
                for name, at in workers.items():
                    if name not in rows:
                        rows[name] = drawn.add_task("", total=None)
                    label, total = f"  {name}: {at.unit}", at.total or None
                    drawn.update(rows[name], completed=at.done, total=total, description=label)

            task.changed, self._workers_changed = redraw, redraw_workers
            redraw_workers()
            try:
                yield
            finally:
                self._workers_changed = lambda: None

    def _write(self, line: str) -> None:
        print(printable(line), file=sys.stderr, flush=True)

    def _is_terminal(self) -> bool:
        # rich, which takes a twentieth of a small merge, knows more ways to be one.
        is_plain = not sys.stderr.isatty() and not _TERMINALS & os.environ.keys()
        if is_plain and not self._force_terminal:
            return False
        return self._console().is_terminal

    def _console(self) -> Console:
        return new_console(sys.stderr, force_terminal=self._force_terminal)


def _amounts(is_bytes: bool) -> list[ProgressColumn]:
    """How much is done, once it is known of how much: nothing is no "0/? bytes"."""
    from rich import progress as bars
    from rich.text import Text

    class Amount(bars.DownloadColumn):
        def render(self, task: bars.Task) -> Text:
            return super().render(task) if task.total else Text("")

    class Speed(bars.TransferSpeedColumn):
        def render(self, task: bars.Task) -> Text:
            return super().render(task) if task.total else Text("")

    class Count(bars.MofNCompleteColumn):
        def render(self, task: bars.Task) -> Text:
            return super().render(task) if task.total else Text("")

    return [Amount(), Speed()] if is_bytes else [Count()]


def _clock(seconds: float) -> str:
    """E.g. ``0:01:30``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
