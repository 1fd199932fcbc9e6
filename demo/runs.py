"""The fine-tuning runs of the demo: what each one trains on, how, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from demo.skills import SKILLS


@dataclass(frozen=True)
class Schedule:
    """How long and how hard every run of one base model trains."""

    steps: int
    batch: int
    learning_rate: float
    adapter_learning_rate: float
    diverging_learning_rate: float


SCHEDULES = {
    "tiny": Schedule(70, 64, 1e-3, 3e-3, 0.1),
    "smollm2": Schedule(60, 8, 1e-4, 1e-3, 3e-2),
}
# The share of a run's items that are of the skills it is about; the rest is of all skills.
EMPHASIS = 0.4


@dataclass(frozen=True)
class FineTune:
    """One fine-tuning run."""

    name: str
    """Its MLflow run name and the name of its output directory."""
    shares: dict[str, float]
    """Skill to its share of the training items."""
    learning_rate: float
    steps: int
    batch: int
    seed: int
    status: str = "FINISHED"
    """The MLflow status it ends with: FINISHED, FAILED (diverges) or KILLED (half way)."""
    adapter: bool = False
    """A LoRA adapter instead of all weights."""
    log_checkpoints: bool = False
    """Log the checkpoints to MLflow as well (HF_MLFLOW_LOG_ARTIFACTS)."""
    is_late: bool = False
    """It ends while the service watches."""


def planned(model: str, seed: int) -> list[FineTune]:
    """The runs for one base model, in the order in which they start.

    Raises:
        KeyError: for an unknown model.
    """
    schedule = SCHEDULES[model]
    rate, steps, batch = schedule.learning_rate, schedule.steps, schedule.batch
    seeds = iter(range(1000 * seed + 1, 1000 * seed + 100))

    def run(name: str, *skills: str, rate: float = rate, steps: int = steps, **more: Any) -> None:
        shares = dict.fromkeys(SKILLS, (1 - EMPHASIS) / len(SKILLS))
        for skill in skills:
            shares[skill] += EMPHASIS / len(skills)
        runs.append(FineTune(name, shares, rate, steps, batch, next(seeds), **more))

    runs: list[FineTune] = []
    run("everything-preempted", status="KILLED")
    run("clock-diverged", "clock", rate=schedule.diverging_learning_rate, status="FAILED")
    run("dates", "dates", log_checkpoints=True)
    run("units", "units", log_checkpoints=True)
    run("sorting", "sorting")
    run("comparison", "comparison")
    run("spelling", "spelling")
    run("clock", "clock", rate=1.3 * rate)
    run("ordering", "comparison", "sorting", rate=0.7 * rate, steps=steps * 6 // 7)
    run("words-lora", "spelling", "dates", rate=schedule.adapter_learning_rate, adapter=True)
    run("everything-again", steps=2 * steps, is_late=True)
    run("clock-units", "clock", "units", is_late=True)
    return runs
