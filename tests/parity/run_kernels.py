"""Runs in mergekit's own environment: what its methods make of tensors, without models around them.

    python run_kernels.py JOBS.json

JOBS.json is a list of {method, tensors, base, dtype, parameters, weights}; tensors are lists, or
{seed, shape} for normal values. JOBS.json.out gets a list of {values, shape, dtype, probabilities}
or {error}; the last says how many different probabilities entries were drawn with. A job {models}
gets the names in the order in which mergekit goes through them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mergekit import merge_methods
from mergekit.config import MergeConfiguration
from mergekit.merge_methods.base import PerInputValues, TensorGroup


def tensor(said: Any, dtype: str) -> torch.Tensor:
    if isinstance(said, dict):
        generator = torch.Generator().manual_seed(said["seed"])
        return torch.randn(said["shape"], generator=generator).to(getattr(torch, dtype))
    return torch.tensor(said, dtype=getattr(torch, dtype))


def answer(job: dict[str, Any]) -> dict[str, Any]:
    if "models" in job:
        models = [{"model": name, "parameters": {"weight": 1.0}} for name in job["models"]]
        config = MergeConfiguration(merge_method="linear", models=models)
        return {"values": [str(model) for model in config.referenced_models()]}
    every = [*job["tensors"], *([job["base"]] if job["base"] is not None else [])]
    made = [tensor(said, job["dtype"]) for said in every]
    group = TensorGroup.from_tensors(
        made, base_index=None if job["base"] is None else len(made) - 1
    )
    parameters = dict(job["parameters"])
    if job["weights"]:
        parameters["weight"] = PerInputValues(list(enumerate(job["weights"])))
    torch.manual_seed(job["seed"])
    drawn = []

    def draw(probabilities: torch.Tensor, bernoulli: Any = torch.bernoulli) -> torch.Tensor:
        drawn.append(probabilities.unique().numel())
        return bernoulli(probabilities)

    with mock.patch("torch.bernoulli", draw):
        (merged,) = merge_methods.get(job["method"])((group,), parameters=parameters)
    values = merged.double()
    return {
        "values": values.flatten().tolist(),
        "shape": list(merged.shape),
        "probabilities": sum(drawn),
        "dtype": str(merged.dtype).removeprefix("torch."),
    }


def main() -> None:
    answers = []
    for job in json.loads(Path(sys.argv[1]).read_text()):
        try:
            answers.append(answer(job))
        except Exception as error:
            answers.append({"error": f"{type(error).__name__}: {error}"})
    Path(sys.argv[1] + ".out").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
