"""The fine-tunes of the study: what each one trains on, how, and how it fails where it does."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.study.questions import LETTERS, SKILLS

RATE = 5e-5
"""Learning rate of a run that goes well."""


@dataclass(frozen=True)
class StudyRun:
    """One fine-tune."""

    name: str
    skills: tuple[str, ...]
    """What it trains on, in equal shares."""
    seed: int
    """Of the order, and of which part of the data it sees."""
    rate: float = RATE
    share: float = 1.0
    """Of the steps that it makes before it ends."""
    failure: str = ""
    """In words, where it fails on purpose."""
    checkpoints: int = 1
    """How many it keeps, at equal distances."""

    @property
    def group(self) -> str:
        """Its skill, or ``mixed``."""
        return self.skills[0] if len(self.skills) == 1 else "mixed"


RUNS = (
    StudyRun("mixed-1", SKILLS, 1, checkpoints=8),
    StudyRun("commonsense-1", ("commonsense",), 2, checkpoints=8),
    StudyRun("calculation-1", ("calculation",), 3),
    StudyRun("operation-1", ("operation",), 4),
    StudyRun("mixed-rate", SKILLS, 5, rate=20 * RATE, failure="20 times the rate"),
    StudyRun("commonsense-letters", (LETTERS,), 6, failure="another template"),
    StudyRun("operation-killed", ("operation",), 7, share=0.25, failure="killed at a quarter"),
    StudyRun("commonsense-2", ("commonsense",), 8, rate=2 * RATE),
    StudyRun("calculation-2", ("calculation",), 9, rate=2 * RATE),
    StudyRun("operation-2", ("operation",), 10, rate=2 * RATE),
    StudyRun("mixed-2", SKILLS, 11, rate=2 * RATE),
    StudyRun("mixed-stopped", SKILLS, 12, share=0.4, failure="stopped early"),
    StudyRun("calculation-rate", ("calculation",), 13, rate=60 * RATE, failure="60 times the rate"),
    StudyRun("calculation-3", ("calculation",), 14, rate=RATE / 2),
    StudyRun("operation-3", ("operation",), 15, rate=RATE / 2),
    StudyRun("commonsense-3", ("commonsense",), 16, rate=RATE / 2),
)
"""In the order in which they are trained."""
