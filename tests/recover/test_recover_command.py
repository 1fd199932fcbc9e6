"""The command, and what a merge says of a directory that has to be recovered first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from support.zero_files import write_zero3

from mergeops.sources.contents import Location
from mergeops.sources.remote.directory import LocalDirectory


def mergeops(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mergeops", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_says_what_is_there_and_writes_it(
    written: Path, trained_base: Path, tmp_path: Path
) -> None:
    words = ["recover", written / "fsdp" / "checkpoint-4", tmp_path / "out"]
    tried = mergeops(*words, "--base", trained_base, "--dry-run")
    assert tried.stdout.splitlines() == [
        f"{written}/fsdp/checkpoint-4/pytorch_model_fsdp_0: torch.distributed.checkpoint (FSDP), "
        "step 4, 2 processes; a model of 21 tensors, 0.000108 GB",
        f"whole; without --dry-run it is written to {tmp_path}/out",
    ]
    assert not (tmp_path / "out").exists()
    done = mergeops(*words, "--base", trained_base, "--json")
    assert json.loads(done.stdout)["found"]["kind"] == "dcp"
    again = mergeops(*words, "--base", trained_base)
    assert again.stdout.splitlines()[-1] == f"{tmp_path}/out holds it already"
    refused = mergeops(*words)
    assert refused.returncode == 3
    assert "has no config.json; say which model was trained" in refused.stderr


def test_such_a_directory_as_a_source_names_the_command(written: Path, tmp_path: Path) -> None:
    folder = written / "fsdp" / "checkpoint-4"
    problem = Location.at(LocalDirectory(folder)).contents.problem
    assert f"`mergeops recover {folder} OUT --base BASE`, with BASE the model" in str(problem)
    run = write_zero3(tmp_path, {"w": torch.ones(2)}, 2)
    (run / "latest").write_text("global_step4")
    assert "the save did not finish" in str(Location.at(LocalDirectory(run)).contents.problem)
