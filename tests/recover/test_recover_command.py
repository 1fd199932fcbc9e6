"""The command, and merges of what was never put together."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.zero_files import write_zero3

from mergeops.api import merge as api_merge
from mergeops.errors import SourceError
from mergeops.recover import recover
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


@pytest.mark.parametrize("folder", ["fsdp/checkpoint-4", "slices", "verl/global_step_4"])
def test_a_merge_reads_the_pieces_where_they_lie(
    written: Path,
    trained_base: Path,
    tiny_llama: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tiny_llama(like=trained_base, seed=3)
    recover(written / folder, tmp_path / "whole", base=trained_base)
    merged = {}
    for name, place in (("pieces", written / folder), ("whole", tmp_path / "whole")):
        sources = {"a": str(place), "b": str(other)}
        recipe = {"base": str(trained_base), "sources": sources, "method": "task_arithmetic"}
        api_merge(recipe, tmp_path / f"merged_{name}")
        merged[name] = load_file(tmp_path / f"merged_{name}" / "model.safetensors")
    assert merged["pieces"].keys() == merged["whole"].keys()
    assert all(merged["pieces"][name].equal(merged["whole"][name]) for name in merged["whole"])


def test_pieces_need_the_model_that_was_trained(
    written: Path, trained_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = written / "fsdp" / "checkpoint-4"
    with pytest.raises(SourceError, match="set sources.a.base to the model that was trained, or p"):
        api_merge({"sources": {"a": str(folder)}, "method": "linear"}, tmp_path / "out")
    with pytest.raises(SourceError, match="base: .* holds what a sharded training left"):
        recipe = {"base": str(folder), "sources": {"a": str(trained_base)}, "method": "linear"}
        api_merge(recipe, tmp_path / "out")
    adapter = written / "lora" / "checkpoint-4"
    with pytest.raises(SourceError, match="no adapter_config.json, and alpha is in no file"):
        recipe = {"base": str(trained_base), "sources": {"a": str(adapter)}, "method": "linear"}
        api_merge(recipe, tmp_path / "out")
