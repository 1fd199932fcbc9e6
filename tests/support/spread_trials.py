"""A sweep and a search of tiny models, done here and by workers, one of which dies."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from mergeops.pipeline import run_all
from mergeops.progress import Progress
from mergeops.recipe import ExecutorSpec, Recipe
from mergeops.search import run_search
from mergeops.tracking import Trial

TEXT = "\n\n".join(f"{i:03d} " + "the hare ran. " * 75 for i in range(16))
METHODS = tuple({"name": "ties", "density": density} for density in (0.3, 0.7))


class SpreadTrials:
    """Two sources and their base, scored by a text.

    Args:
        uri: of the MLflow store where trials are logged.
        folder: for models and work.
    """

    def __init__(self, tiny_llama: Callable[..., Path], uri: str, folder: Path) -> None:
        self._folder, self._uri = folder, uri
        (folder / "held.txt").write_text(TEXT)
        self._base = tiny_llama()
        self._sources = {n: str(tiny_llama(like=self._base, seed=i)) for i, n in enumerate("ab", 1)}

    def recipe(self, place: str, executor: ExecutorSpec, **more: Any) -> Recipe:
        """The recipe of a directory, whose name its experiment has, too."""
        return Recipe.from_dict(
            {
                "base": str(self._base),
                "sources": self._sources,
                "evaluate": {"tasks": [str(self._folder / "held.txt")], "device": "cpu"},
                "tracking": {"uri": self._uri, "experiment": place, "heat_maps": False},
                "output": {"dir": str(self._folder / place), "device": "cpu"},
                "executor": executor.to_dict(),
                **more,
            }
        )

    def swept(
        self, place: str, executor: ExecutorSpec, progress: Progress | None = None
    ) -> list[dict[str, Any]]:
        """What a sweep of two merges gives."""
        recipes = [self.recipe(place, executor, method=method) for method in METHODS]
        return [told(trial) for trial in run_all(recipes, progress or quiet(), name="a sweep")]

    def searched(
        self, place: str, executor: ExecutorSpec, progress: Progress | None = None
    ) -> dict[str, Any]:
        """What a study of four trials gives: each one's parameters and score, and what is kept."""
        search = {"strategy": "optuna", "trials": 4, "sampler": "random", "keep": 1}
        recipe = self.recipe(place, executor, method="linear", search=search)
        found = run_search(recipe, progress or quiet())
        rows = [(r["parameters"], r["state"], r["score"]) for r in found.report["trials"]]
        return {"trials": rows, "kept": [told(trial) for trial in found.trials]}

    def check_on(self, spec: ExecutorSpec) -> None:
        """A sweep, a worker of which dies, and a search give on workers what they give here."""
        killing = self.killing()
        assert self.swept("there", spec, killing) == self.swept("here", ExecutorSpec())
        assert len(killing.lost) == 1
        assert self.searched("there", spec) == self.searched("here", ExecutorSpec())

    def killing(self) -> KillsOne:
        """Progress that has a worker killed as soon as it is at work."""
        return KillsOne((f"{self._base}/", f"{self._folder}/"))


def quiet() -> Progress:
    return Progress(quiet=True)


def told(trial: Trial) -> dict[str, Any]:
    """What has to be the same wherever a trial was made."""
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in trial.checkpoint.iterdir()}
    assert trial.scores is not None
    parents = {name: scores.pooled for name, scores in trial.parents.items()}
    return {"files": files, "score": trial.scores.pooled, "parents": parents}


class KillsOne(Progress):
    """Says nothing; ends one other process that has a file open in one of some directories.

    Args:
        folders: with a slash at the end.
    """

    def __init__(self, folders: tuple[str, ...]) -> None:
        super().__init__(quiet=True)
        self._folders = folders
        self._killer: threading.Thread | None = None
        self.lost: list[str] = []

    def at_work(self, worker: str, unit: str, done: int = 0, total: int = 0) -> None:
        if self._killer is None:
            self._killer = threading.Thread(target=self._kill, daemon=True)
            self._killer.start()

    def step(self, text: str) -> None:
        if "is gone" in text:
            self.lost.append(text)

    def _kill(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if process.pid != os.getpid() and self._is_open(process):
                        process.send_signal(signal.SIGKILL)
                        return
            time.sleep(0.01)

    def _is_open(self, process: psutil.Process) -> bool:
        return any(file.path.startswith(self._folders) for file in process.open_files())
