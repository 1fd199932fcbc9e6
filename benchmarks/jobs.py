"""What is measured: the same merge as a command of each contestant."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parent.parent
MERGEKIT = REPOSITORY / ".venv-mergekit" / "bin"
CONTESTANTS = ("mergekit", "mergeops", "floor")
AS_CALLED = "as_called"
"""mergeops as a user calls it, with its own arithmetic."""
EARLIER = "earlier"
"""mergeops of another checkout, where one is given; called as ``mergeops`` is."""
MEASURED = (*CONTESTANTS, AS_CALLED)
MERGEKIT_OPTIONS = (
    "--lazy-unpickle",
    "--quiet",
    "--no-copy-tokenizer",
    "--no-write-model-card",
)
"""The fastest that 0.1.5 offers on a CPU: --async-write gains less than the noise and holds more
memory, and torch takes all processors by itself."""
MERGEOPS_OPTIONS = ("--compat", "mergekit")
"""The same arithmetic: DARE and DELLA match norms over the tensor, a pass that ours do without."""


@dataclass(frozen=True)
class Job:
    """One merge."""

    base: bool
    """Whether the base is read."""
    sources: tuple[str, ...]
    each: Mapping[str, float]
    """Parameters of each source."""
    whole: Mapping[str, float | bool]
    """Parameters of the merge."""
    base_is_source: bool = False
    """mergekit's way to name the first of two models."""


THREE = ("a", "b", "c")
TWO = ("a", "b")
_DENSE = {"weight": 0.5, "density": 0.5}
JOBS = {
    "linear": Job(False, THREE, {"weight": 0.5}, {}),
    "task_arithmetic": Job(True, THREE, {"weight": 0.5}, {}),
    "slerp": Job(True, ("base", "a"), {}, {"t": 0.4}, base_is_source=True),
    "nuslerp": Job(True, TWO, {"weight": 0.5}, {}),
    "model_stock": Job(True, THREE, {}, {}),
    "dare_linear": Job(True, THREE, _DENSE, {}),
    "dare_ties": Job(True, THREE, _DENSE, {}),
    "ties": Job(True, THREE, _DENSE, {}),
    "breadcrumbs": Job(True, THREE, {"weight": 0.5, "density": 0.9, "gamma": 0.01}, {}),
    "della": Job(True, THREE, {"weight": 0.5, "density": 0.5, "epsilon": 0.1}, {}),
    "arcee_fusion": Job(True, ("a",), {}, {}),
    "ram": Job(True, THREE, {}, {}),
    "ramplus_tl": Job(True, THREE, {}, {}),
    "sce": Job(True, THREE, {}, {"select_topk": 0.1}),
    "karcher": Job(False, THREE, {}, {}),
    "multislerp": Job(False, THREE, {"weight": 0.5}, {}),
    "nearswap": Job(True, ("a",), {}, {"t": 0.001}),
    "passthrough": Job(False, ("a",), {"scale": 0.9}, {}),
}


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def inputs(method: str, models: Mapping[str, Path]) -> list[Path]:
    """The files that the merge reads."""
    job = JOBS[method]
    names = dict.fromkeys([*(["base"] if job.base else []), *job.sources])
    return [models[name] / "model.safetensors" for name in names]


def config(method: str, models: Mapping[str, Path]) -> str:
    """The merge as mergekit's YAML, which mergeops reads, too."""
    job = JOBS[method]
    content = {
        "merge_method": method,
        "dtype": "bfloat16",
        **({"base_model": str(models["base"])} if job.base else {}),
        "models": [
            {"model": str(models[name]), **({"parameters": dict(job.each)} if job.each else {})}
            for name in job.sources
        ],
        **({"parameters": dict(job.whole)} if job.whole else {}),
    }
    return yaml.safe_dump(content, sort_keys=False)


def command(
    contestant: str, method: str, models: Mapping[str, Path], folder: Path, out: Path
) -> list[str]:
    """The command line of a contestant; writes the config that it needs into ``folder``."""
    if contestant == "floor":
        files = inputs(method, models)
        threads = processors()
        nbytes = files[0].stat().st_size
        script = str(Path(__file__).parent / "floor.py")
        place = str(out / "model.safetensors")
        return [sys.executable, script, str(threads), place, str(nbytes), *map(str, files)]
    file = folder / f"{method}.yml"
    file.write_text(config(method, models), encoding="utf-8")
    if contestant == "mergekit":
        return [str(MERGEKIT / "mergekit-yaml"), str(file), str(out), *MERGEKIT_OPTIONS]
    options = () if contestant == AS_CALLED else MERGEOPS_OPTIONS
    return [sys.executable, "-m", "mergeops", "merge", str(file), str(out), *options]
