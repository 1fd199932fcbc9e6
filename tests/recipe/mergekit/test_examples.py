"""Configs as mergekit's users have them, end to end: its six examples, the commands, a tracked run.

The examples are written anew from what each one shows, on tiny stand-ins for their models.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.forked_commands import forked_commands

from mergeops import pipeline, workshop
from mergeops.progress import Progress
from mergeops.recipe.composition import compose

Make = Callable[..., Any]

EXAMPLES = {
    "arcee_fusion": """
merge_method: arcee_fusion
base_model: org/base
models:
  - model: org/a
dtype: bfloat16
""",
    "bio-merge": """
models:
  - model: org/base
    # no parameters necessary for base model
  - model: org/a
    parameters:
      density: 0.5
      weight: 0.5
  - model: org/b
    parameters:
      density: 0.5
      weight: 0.3
merge_method: ties
base_model: org/base
parameters:
  normalize: false
  int8_mask: true
dtype: float16
""",
    "gradient-slerp": """
slices:
  - sources:
      - model: org/a
        layer_range: [0, 8]
      - model: org/b
        layer_range: [0, 8]
merge_method: slerp
base_model: org/a
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float16
""",
    "linear": """
models:
  - model: org/a
    parameters:
      weight: 1.0
  - model: org/b
    parameters:
      weight: 0.3
  - model: org/c
    parameters:
      weight: 0.5
merge_method: linear
dtype: float16
""",
    "orcamini-platy-44layer": """
slices:
  - sources:
      - model: org/a
        layer_range: [0, 6]
  - sources:
      - model: org/b
        layer_range: [3, 8]
merge_method: passthrough
dtype: float16
""",
    "ties": """
models:
  - model: org/a
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: org/b
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: org/c
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: org/base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
""",
}


@pytest.fixture(scope="module")
def models(tiny_llama: Make) -> dict[str, Path]:
    base = tiny_llama(layers=8, dtype="float16")
    fine = {n: tiny_llama(like=base, seed=i, dtype="float16") for i, n in enumerate("abc", 1)}
    return {"base": base} | fine


@pytest.fixture
def here(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with org/base, org/a, org/b and org/c."""
    (tmp_path / "org").mkdir()
    for name, path in models.items():
        (tmp_path / "org" / name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_mergekit_runs_loads_and_generates(name: str, here: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (here / "config.yml").write_text(EXAMPLES[name])
    recipe = compose([], recipe_file=here / "config.yml")
    workshop.merge_only(recipe, here / "out", Progress(quiet=True))
    model = AutoModelForCausalLM.from_pretrained(here / "out")
    wanted = yaml.safe_load(EXAMPLES[name])["dtype"]
    assert model.dtype == getattr(torch, wanted)
    assert model.config.num_hidden_layers == (11 if name.startswith("orcamini") else 8)
    tokens = AutoTokenizer.from_pretrained(here / "out")("one two", return_tensors="pt")
    generated = model.generate(**tokens, max_new_tokens=3, do_sample=False, min_new_tokens=3)
    assert generated.shape[1] == tokens["input_ids"].shape[1] + 3


def mergeops(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return forked_commands().run(cwd, words, os.environ)


def test_the_commands_merge_and_convert_agree(here: Path) -> None:
    (here / "config.yml").write_text(EXAMPLES["ties"])
    done = mergeops("merge", "config.yml", "out", "--json", "-q", cwd=here)
    assert done.returncode == 0, done.stderr
    digest = json.loads(done.stdout)["plan_digest"]
    done = mergeops("convert", "config.yml", "recipe.yaml", cwd=here)
    assert (done.returncode, done.stdout) == (0, "wrote recipe.yaml\n"), done.stderr
    done = mergeops("merge", "recipe.yaml", "again", "--json", "-q", cwd=here)
    assert json.loads(done.stdout)["plan_digest"] == digest
    printed = mergeops("convert", "config.yml", cwd=here).stdout
    assert printed == (here / "recipe.yaml").read_text()
    done = mergeops("convert", "config.yml", "recipe.yaml", cwd=here)
    assert (done.returncode, done.stdout) == (0, "recipe.yaml holds it already\n"), done.stderr
    (here / "recipe.yaml").write_text("# mine\n")
    done = mergeops("convert", "config.yml", "recipe.yaml", cwd=here)
    assert done.returncode == 2
    assert "recipe.yaml exists; choose another name, or add --force" in done.stderr
    done = mergeops("convert", "gone.yml", cwd=here)
    assert (done.returncode, "gone.yml does not exist" in done.stderr) == (2, True)


def test_compat_changes_what_the_tensors_after_the_layers_get(here: Path) -> None:
    (here / "config.yml").write_text(EXAMPLES["ties"])
    ours = mergeops("convert", "config.yml", "--json", cwd=here)
    theirs = mergeops("convert", "config.yml", "--json", "--compat", "mergekit", cwd=here)
    assert "compat" not in json.loads(ours.stdout)
    assert json.loads(theirs.stdout)["compat"] == "mergekit"


def test_an_error_says_file_line_and_key_in_one_line(here: Path) -> None:
    (here / "config.yml").write_text(EXAMPLES["linear"].replace("weight: 0.3", "wieght: 0.3"))
    done = mergeops("merge", "config.yml", "out", cwd=here)
    assert done.returncode == 2
    assert done.stderr == (
        "mergeops: error: config.yml, line 8: models[1].parameters.wieght is an unknown key of "
        "linear; did you mean 'weight'? allowed: weight, int8_mask\n"
    )
    assert not (here / "out").exists()


def test_a_config_of_several_merges_is_tracked_as_one_trial(here: Path) -> None:
    from mlflow import MlflowClient

    (here / "config.yml").write_text(
        "name: half\nmodels: [{model: org/a}, {model: org/b}]\nmerge_method: linear\n"
        "parameters: {weight: 1}\n---\nmodels: [{model: half}, {model: org/c}]\n"
        "merge_method: linear\nparameters: {weight: 1}\n"
    )
    uri = f"sqlite:///{here}/mlflow.db"
    words = ["recipe=mergekit", "file=config.yml", f"tracking.uri={uri}"]
    trial = pipeline.run_all([compose(words)], Progress(quiet=True), name="x")[0]
    again = pipeline.run_all([compose(words)], Progress(quiet=True), name="x")[0]
    assert again.run_id == trial.run_id
    run = MlflowClient(uri).get_run(trial.run_id)
    assert run.data.tags["mergeops.method"] == "linear"
    assert run.data.params["sources.half.uri"] == "merge:half"
    assert run.data.params["merges.half.sources.a.uri"] == "org/a"
    parents = [i.model_id for i in run.inputs.model_inputs]
    assert len(parents) == 2
