"""What a sharded training left in an artifact store is found by names and sizes, then fetched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.s3_server import S3
from support.zero_files import write_zero2

from mergeops.api import merge
from mergeops.errors import SourceError
from mergeops.sources.contents import Contents, Location
from mergeops.sources.training_runs import open_remote

SHARD = "shard-0000{}-model-00001-of-00001.safetensors"
OPTIM = "global_step4/zero_pp_rank_{}_mp_rank_00_optim_states.pt"


def stored(folder: Path) -> Contents:
    """What a store, here a folder that MLflow lists, holds; nothing of it may be opened."""
    directory = open_remote(folder.as_uri())
    assert directory.local is None
    return Location.at(directory).contents


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ([SHARD.format(1), SHARD.format(2)], ("slices", None, 2)),
        ([OPTIM.format(0), OPTIM.format(1), "latest"], ("zero", 4, 2)),
        (["actor/model_world_size_3_rank_0.pt"], ("processes", None, 3)),
        (["pytorch_model_fsdp_0/__0_0.distcp", "config.json"], ("dcp", None, 1)),
    ],
)
def test_pieces_in_a_store_are_known_by_their_names(
    files: list[str], wanted: tuple[str, int | None, int], tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("global_step4" if name == "latest" else "")
    contents = stored(tmp_path)
    pieces = contents.pieces
    assert pieces is not None
    assert (pieces.kind, pieces.step, pieces.world_size) == wanted
    assert contents.sharded == "full"


def test_the_index_and_the_sizes_say_what_is_missing_in_a_store(
    copied: Callable[[str], Path],
) -> None:
    folder = copied("fsdp/checkpoint-4")
    inner = folder / "pytorch_model_fsdp_0"
    contents = stored(folder)
    assert contents.sharded == "full"
    assert contents.pieces is not None
    assert (contents.pieces.step, contents.pieces.world_size) == (4, 2)
    payload = (inner / "__1_0.distcp").read_bytes()
    (inner / "__1_0.distcp").write_bytes(payload[:-1])
    cut = stored(folder)
    assert cut.sharded is None
    assert "__1_0.distcp has" in str(cut.problem)
    assert str(cut.problem).startswith(f"{inner.as_uri()}/__1_0.distcp has")
    (inner / "__1_0.distcp").write_bytes(payload)
    (inner / ".metadata").unlink()
    assert "has no .metadata, which is written last: the save did not" in str(
        stored(folder).problem
    )


def test_a_sharded_adapter_in_a_store_needs_its_settings(copied: Callable[[str], Path]) -> None:
    folder = copied("lora/checkpoint-4")
    assert "but no adapter_config.json lies beside it" in str(stored(folder).problem)
    (folder / "adapter_config.json").write_text("{}")
    assert stored(folder).sharded == "lora"


def test_latest_in_a_store_names_the_step(tmp_path: Path) -> None:
    import torch

    run = write_zero2(tmp_path, {"a": torch.ones(2)})
    assert stored(run).sharded == "full"
    (run / "latest").write_text("global_step8")
    assert "latest names 'global_step8', which is not there" in str(stored(run).problem)
    (run / "latest").unlink()
    assert "has no file latest, which DeepSpeed writes last" in str(stored(run).problem)
    (run / "global_step2" / ".incomplete").touch()
    assert "did not finish" in str(stored(run / "global_step2").problem)


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3]:
    server = S3()
    server.start()
    server.client.create_bucket(Bucket="runs")
    yield server
    server.stop()


@pytest.mark.integration
def test_pieces_in_a_bucket_are_sources_of_a_merge(
    bucket: S3,
    written: Path,
    trained_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    shutil.copytree(written / "lora" / "checkpoint-4", tmp_path / "lora")
    shutil.copy(written / "adapter" / "adapter_config.json", tmp_path / "lora")
    sources = {"fsdp": written / "fsdp/checkpoint-4", "verl": written / "verl/global_step_4"}
    sources |= {"lora": tmp_path / "lora", "slices": written / "slices"}
    uris = {}
    for name, folder in sources.items():
        uris[name] = f"s3://runs/{name}/checkpoint-4"
        for file in folder.rglob("*"):
            if file.is_file():
                key = f"{name}/checkpoint-4/{file.relative_to(folder)}"
                bucket.client.upload_file(str(file), "runs", key)
    merged = {}
    for where, named in (("here", {n: str(p) for n, p in sources.items()}), ("there", uris)):
        recipe = {"base": str(trained_base), "sources": named, "method": "linear"}
        merge(recipe, tmp_path / where)
        merged[where] = load_file(tmp_path / where / "model.safetensors")
    assert all(merged["there"][name].equal(t) for name, t in merged["here"].items())
    # Of the bucket only the model's pieces came, not the optimiser's.
    cut = (written / "fsdp/checkpoint-4/pytorch_model_fsdp_0/__0_0.distcp").read_bytes()[:-1]
    bucket.client.put_object(
        Bucket="runs", Key="fsdp/checkpoint-4/pytorch_model_fsdp_0/__0_0.distcp", Body=cut
    )
    recipe = {"base": str(trained_base), "sources": {"a": uris["fsdp"]}, "method": "linear"}
    with pytest.raises(SourceError, match=r"s3://runs/.*__0_0.distcp has \d+ bytes, but tensor"):
        merge(recipe, tmp_path / "cut")
    assert json.loads((tmp_path / "there" / "mergeops.json").read_text())
