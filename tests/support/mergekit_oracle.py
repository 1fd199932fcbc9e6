"""Merge one YAML with mergekit and with mergeops, and say how far apart they are."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("MERGEKIT_PYTHON", REPOSITORY / ".venv-mergekit" / "bin" / "python"))
LIMIT = 1e-6
"""How far apart merges may be, of a tensor's largest value."""
TWO = """
merge_method: linear
models:
  - {model: {a}, parameters: {weight: 0.3}}
  - {model: {b}, parameters: {weight: 0.5}}
dtype: float32
"""
"""A weighted mean of two models."""
DRIVER = Path(__file__).parents[1] / "parity" / "run_mergekit.py"


@dataclass(frozen=True)
class Case:
    """One merge that both do."""

    name: str
    config: str
    """mergekit's YAML; {base}, {a}, {b}, {c} are the models' directories."""
    architecture: str = "llama"
    dtype: str = "float32"
    seed: int = 0
    models: str = ""
    """Which variation of the models, made by the test module; empty for the plain family."""
    compat: bool = False
    """Whether mergekit's numbers are asked for where ours differ by choice."""
    truncate: bool = False
    """Whether mergekit is run with --unsafe-truncate-embeddings."""

    def __str__(self) -> str:
        return f"{self.name}-{self.architecture}"


@dataclass(frozen=True)
class Pair:
    """What came out."""

    case: Case
    mergekit: Path
    """Its output."""
    status: str
    """ok, or mergekit's traceback."""
    config: Path
    """The YAML, with the directories filled in."""


def run_mergekit(jobs: Sequence[Pair], seeds: Sequence[int], folder: Path) -> list[Pair]:
    """Run every config in one process of mergekit's environment."""
    import dataclasses

    content = [
        {
            "config": str(job.config),
            "out": str(job.mergekit),
            "seed": seed,
            "truncate": job.case.truncate,
        }
        for job, seed in zip(jobs, seeds, strict=True)
    ]
    (folder / "jobs.json").write_text(json.dumps(content))
    run_there(PYTHON, DRIVER, folder / "jobs.json")
    return [
        dataclasses.replace(job, status=Path(f"{job.mergekit}.status").read_text()) for job in jobs
    ]


def run_there(*command: str | Path) -> None:
    """Run a command of mergekit's environment, in which nothing of ours is found."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": "",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def filled(case: Case, places: Mapping[str, Path]) -> str:
    """The case's YAML with the models' directories in it."""
    text = case.config
    for name, place in places.items():
        text = text.replace("{" + name + "}", str(place))
    return text


def merge_ours(pair: Pair, out: Path) -> Path:
    """Merge the same YAML with mergeops, as the command line does."""
    from mergeops import workshop
    from mergeops.progress import Progress
    from mergeops.recipe import composition as compose

    overrides = [f"output.dir={out}-work", f"seed={pair.case.seed}"]
    overrides += ["compat=mergekit"] if pair.case.compat else []
    recipe = compose.compose(overrides, recipe_file=pair.config)
    workshop.merge_only(recipe, out, Progress(quiet=True))
    return out


def tensors_of(folder: Path) -> dict[str, Any]:
    """All tensors of a checkpoint."""
    from safetensors.torch import load_file

    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def token_ids(model: Path) -> dict[str, int]:
    """Token -> id of a model's tokenizer; none where it has none."""
    file = model / "tokenizer.json"
    if not file.is_file():
        return {}
    content = json.loads(file.read_text())
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    return {**content["model"]["vocab"], **added}


def loaded(folder: Path) -> dict[str, Any]:
    """A checkpoint's tensors as transformers names them in memory, e.g. experts in one tensor."""
    import transformers

    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model = getattr(transformers, name).from_pretrained(folder)
    return dict(model.state_dict())


@dataclass(frozen=True)
class Worst:
    """The tensor on which two checkpoints differ most."""

    name: str
    difference: float
    """Largest difference, as a part of the tensor's largest value."""


def far_apart(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Worst:
    """Compare two checkpoints, which must have the same tensors in the same shapes."""
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    worst = Worst("", 0.0)
    for name, tensor in theirs.items():
        assert ours[name].shape == tensor.shape, f"{name}: {ours[name].shape} {tensor.shape}"
        scale = float(tensor.double().abs().max()) or 1.0
        difference = float((ours[name].double() - tensor.double()).abs().max()) / scale
        if not difference <= worst.difference:
            worst = Worst(name, difference)
    return worst
