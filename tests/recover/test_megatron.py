"""The average of Megatron's checkpoints is one that Megatron loads."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner
from support.programs import free_port, run_two, started
from torch import Tensor

from mergeops.cli.main import cli
from mergeops.errors import ConfigError, MergeError, SourceError
from mergeops.recover import average_megatron, leftover, megatron

QKV = "decoder.layers.self_attention.linear_qkv.weight"


def megatrons(root: Path, step: int, **changes: Any) -> Path:
    """A folder as Megatron-Core 0.16 lays it out: layers stacked, optimiser beside, other state."""
    source = torch.Generator().manual_seed(step)
    state: dict[str, Any] = {
        QKV: torch.randn(2, 12, 4, generator=source),
        "embedding.word_embeddings.weight": torch.randn(16, 4, generator=source).bfloat16(),
        "decoder.final_layernorm.weight": torch.randn(4, generator=source),
        f"{QKV.removesuffix('weight')}_extra_state/shard_0_2": io.BytesIO(b"state %d" % step),
        "optimizer.state.exp_avg." + QKV: torch.randn(2, 12, 4, generator=source),
        "rng_state/shard_0.0_1.1": io.BytesIO(b"random"),
        **changes,
    }
    folder = root / f"iter_{step:07d}"
    dcp.save({k: v for k, v in state.items() if v is not None}, checkpoint_id=folder, no_dist=True)
    (folder / "metadata.json").write_text(
        '{"sharded_backend": "torch_dist", "sharded_backend_version": 1}'
    )
    torch.save({"iteration": step, "args": None}, folder / "common.pt")
    (root / "latest_checkpointed_iteration.txt").write_text(str(step))
    return folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """What torch's own reader finds."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    described = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        key: torch.empty(what.size, dtype=what.properties.dtype)
        for key, what in described.items()
        if isinstance(what, TensorStorageMetadata)
    }
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def test_the_average_is_a_folder_that_torch_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megatron, "PIECE_NUMBERS", 20)
    one, two = megatrons(tmp_path / "one", 10), megatrons(tmp_path / "two", 20)
    result = average_megatron([one, two], tmp_path / "out")
    assert result.out == tmp_path / "out" / "iter_0000020"
    assert (tmp_path / "out/latest_checkpointed_iteration.txt").read_text() == "20"
    assert (result.out / "common.pt").read_bytes() == (two / "common.pt").read_bytes()
    a, b, mean = tensors_of(one), tensors_of(two), tensors_of(result.out)
    assert mean.keys() == {name for name in a if not name.startswith("optimizer")}
    for name, tensor in mean.items():
        expected = (a[name].double() + b[name].double()) / 2
        assert tensor.equal(expected.to(a[name].dtype)), name
    extra = f"{QKV.removesuffix('weight')}_extra_state/shard_0_2"
    state = {extra: io.BytesIO()}
    dcp.load(state, checkpoint_id=result.out, no_dist=True)
    assert state[extra].getvalue() == b"state 20"
    assert result.copied == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "out", "two"]


def test_weights_are_shares(tmp_path: Path) -> None:
    one, two = megatrons(tmp_path / "one", 10), megatrons(tmp_path / "two", 20)
    words = ["average", str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "out")]
    done = CliRunner().invoke(cli, [*words, "--weights", "3,1"], catch_exceptions=False)
    assert done.output.splitlines() == [
        f"0.75 x {one}",
        f"0.25 x {two}",
        f"3 tensors, 1 other objects from the last; averaged into {tmp_path}/out/iter_0000020",
    ]
    again = CliRunner().invoke(cli, [*words, "--weights", "3,1"], catch_exceptions=False)
    assert again.output.endswith(f"; {tmp_path}/out/iter_0000020 holds it already\n")
    verified = CliRunner().invoke(cli, ["verify", str(tmp_path / "out")], catch_exceptions=False)
    assert verified.exit_code == 0, verified.output
    with pytest.raises(MergeError, match="out holds something else already"):
        average_megatron([one, two], tmp_path / "out")
    mean = tensors_of(tmp_path / "out" / "iter_0000020")[QKV]
    expected = tensors_of(one)[QKV].double() * 0.75 + tensors_of(two)[QKV].double() * 0.25
    assert mean.equal(expected.float())


def test_a_link_where_the_average_is_written_is_not_followed(tmp_path: Path) -> None:
    one, two = megatrons(tmp_path / "one", 10), megatrons(tmp_path / "two", 20)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.averaging").mkdir()
    (tmp_path / ".out.averaging" / "recovered.json").symlink_to(elsewhere / "x")
    with pytest.raises(MergeError, match="is a link, or no file, and what is written here would"):
        average_megatron([one, two], tmp_path / "out")
    assert not any(elsewhere.iterdir())


def test_what_cannot_be_averaged_is_refused(tmp_path: Path) -> None:
    one, two = megatrons(tmp_path / "one", 10), megatrons(tmp_path / "two", 20)
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="needs two checkpoints or more, not 1"):
        average_megatron([one], out)
    with pytest.raises(ConfigError, match="1 weights for 2 checkpoints"):
        average_megatron([one, two], out, weights=[1])
    with pytest.raises(ConfigError, match="allowed are numbers from 0 on, not all 0"):
        average_megatron([one, two], out, weights=[0, 0])
    with pytest.raises(ConfigError, match="allowed are numbers from 0 on"):
        average_megatron([one, two], out, weights=[float("nan"), 1])
    with pytest.raises(SourceError, match="is no checkpoint of Megatron: neither a folder iter_N"):
        average_megatron([one, tmp_path], out)
    wide = megatrons(tmp_path / "wide", 30, **{QKV: torch.ones(2, 12, 5)})
    with pytest.raises(
        SourceError, match=r"differ in layout: tensor .*qkv.weight is F32 \[2, 12, 4"
    ):
        average_megatron([one, wide], out)
    less = megatrons(tmp_path / "less", 30, **{QKV: None})
    with pytest.raises(SourceError, match=f"hold other tensors: {QKV} is only in {one}"):
        average_megatron([one, less], out)
    (two / "metadata.json").write_text('{"sharded_backend": "fsdp_dtensor"}')
    with pytest.raises(SourceError, match="is in the format 'fsdp_dtensor'; only torch_dist"):
        average_megatron([one, two], out)
    (two / "metadata.json").unlink()
    with pytest.raises(SourceError, match="has no metadata.json, which names the format"):
        average_megatron([one, two], out)
    assert not out.exists()
    out.mkdir()
    (out / "x").touch()
    with pytest.raises(MergeError, match="is not empty and holds no mergeops.json; choose a new"):
        average_megatron([one, megatrons(tmp_path / "three", 30)], out)


def test_a_cut_checkpoint_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    one, two = megatrons(tmp_path / "one", 10), megatrons(tmp_path / "two", 20)
    [file] = two.glob("*.distcp")
    os.truncate(file, 1500)
    with pytest.raises(SourceError, match=r"__0_0.distcp (has|is cut)"):
        average_megatron([one, two], tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "two"]


def test_such_a_folder_as_a_source_names_the_command(tmp_path: Path) -> None:
    found = leftover(megatrons(tmp_path, 10))
    assert found is not None
    assert "average it with others by `mergeops average DIR DIR OUT`" in str(found.problem)


PROGRAM = """
import os, sys
rank, port, out, seed = sys.argv[1:]
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": "2"}
import torch
torch.distributed.init_process_group("gloo")
# Where Megatron says GPU it works on a CPU, too.
torch.cuda.current_device = lambda: "cpu"
torch.cuda.synchronize = lambda *_: None
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
torch.manual_seed(int(seed))
whole = torch.randn(6, 8), torch.randn(3, 4, 4)
rank = int(rank)
tensors = {
    "linear.weight": ShardedTensor.from_rank_offsets(
        "linear.weight", whole[0].chunk(2)[rank].clone(), (0, rank, 2)),
    "stacked": ShardedTensor.from_rank_offsets(
        "layers.weight", whole[1].chunk(2, 1)[rank].clone(), (1, rank, 2)),
    "extra": ShardedObject("linear._extra_state", {"scale": seed}, (2,), (rank,)),
    "optimizer": ShardedTensor.from_rank_offsets(
        "optimizer.state.exp_avg.linear.weight", torch.ones(3, 8), (0, rank, 2)),
    "iteration": int(seed),
}
if rank == 0:
    os.makedirs(out)
torch.distributed.barrier()
dist_checkpointing.save(tensors, out)
"""
LOAD = """
import os, sys
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1], "RANK": "0",
               "WORLD_SIZE": "1"}
import torch
torch.distributed.init_process_group("gloo")
torch.cuda.current_device = lambda: "cpu"
torch.Tensor.cuda = lambda tensor, *_: tensor
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor, ShardedObject
wanted = {
    "a": ShardedTensor.from_rank_offsets("linear.weight", torch.empty(6, 8)),
    "b": ShardedTensor.from_rank_offsets("layers.weight", torch.empty(3, 4, 4)),
    "c": [ShardedObject("linear._extra_state", None, (2,), (rank,)) for rank in (0, 1)],
}
torch.save(dist_checkpointing.load(wanted, sys.argv[2]), sys.argv[3])
"""


@pytest.mark.slow
def test_megatron_core_loads_the_average_of_what_it_saved(tmp_path: Path) -> None:
    pytest.importorskip("megatron.core", reason="Megatron-Core is not installed")
    folders = [tmp_path / f"run{i}" / f"iter_000000{i}" for i in (1, 2)]
    for i, folder in enumerate(folders, 1):
        run_two(PROGRAM, str(folder), str(i))
    result = average_megatron(folders, tmp_path / "out")
    loaded = tmp_path / "loaded.pt"
    assert started(LOAD, free_port(), str(result.out), str(loaded)).wait(timeout=300) == 0
    found = torch.load(loaded, weights_only=False)
    whole = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        whole.append((torch.randn(6, 8), torch.randn(3, 4, 4)))
    for name, one, two in zip(("a", "b"), *whole, strict=True):
        assert found[name].equal(((one.double() + two.double()) / 2).float())
    assert found["c"] == [{"scale": "2"}, {"scale": "2"}]
    assert found["iteration"] == 2
