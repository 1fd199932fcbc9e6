"""One small merge of many files, done here and by workers that die."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from mergeops.progress import Progress
from mergeops.recipe import ExecutorSpec, Recipe
from mergeops.workshop import merge_only


class Spread:
    """A merge by TIES of three sources, in files of at most 8 kB."""

    def __init__(self, tiny_llama: Callable[..., Path], folder: Path) -> None:
        self._folder = folder
        base = tiny_llama(dtype="bfloat16")
        self._recipe = {
            "base": str(base),
            "sources": {n: str(tiny_llama(like=base, seed=i)) for i, n in enumerate("abc", 1)},
            "method": {"name": "ties", "density": 0.4},
        }
        self.merged_here = self.merged_on(ExecutorSpec(), "here")

    def merged_on(
        self,
        executor: ExecutorSpec,
        name: str,
        *,
        after: int = 0,
        then: Callable[[], Any] | None = None,
    ) -> dict[str, str]:
        """sha256 of each file of the merge.

        Args:
            executor: whose workers write it.
            name: of the directory.
            after: how many files are there when something happens.
            then: what happens.
        """
        work = self._folder / f"work-{name}"
        raw = {**self._recipe, "output": {"dir": str(work), "shard_size": "8KB"}}
        recipe = Recipe.from_dict({**raw, "executor": executor.to_dict()})
        out = self._folder / name
        merge_only(recipe, out, _Watching(out, after, then))
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir())}

    def place(self, name: str) -> Path:
        """A directory beside those of the merges."""
        return self._folder / name

    def recipe_file(self, folder: Path) -> Path:
        """The recipe, written into a directory."""
        file = folder / "recipe.yaml"
        file.write_text(json.dumps({**self._recipe, "output": {"shard_size": "8KB"}}))
        return file

    def touch_source(self) -> None:
        """Change a source while it is merged."""
        os.utime(next(Path(self._recipe["base"]).glob("*.safetensors")))

    def kill_worker(self) -> None:
        """As the system does when memory is short: one that has the base open."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                files = [file.path for file in process.open_files()]
                if process.pid != os.getpid() and any(
                    f.startswith(self._recipe["base"]) for f in files
                ):
                    process.send_signal(signal.SIGKILL)
                    return
        raise AssertionError("no worker has the base open")


class _Watching(Progress):
    """Says nothing; does something once when enough is written."""

    def __init__(self, out: Path, after: int, then: Callable[[], Any] | None) -> None:
        super().__init__(quiet=True)
        self._journal = out.with_name(f".{out.name}.partial") / "journal.jsonl"
        self._after, self._then = after, then

    def step(self, text: str) -> None:
        pass

    def bar(self, label: str, **options: Any) -> Any:
        watching = self

        class Bar:
            def __enter__(self) -> Any:
                return watching.look

            def __exit__(self, *_: object) -> None:
                assert watching._then is None or label.startswith("reading"), "nothing happened"

        return Bar()

    def look(self, done: int, total: int) -> None:
        if self._then is None or not self._journal.exists():
            return
        lines = [json.loads(line) for line in self._journal.read_text().splitlines()[1:]]
        if len({line["file"] for line in lines}) >= self._after:
            then, self._then = self._then, None
            then()
