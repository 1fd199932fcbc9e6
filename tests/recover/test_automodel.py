"""NeMo Automodel's own files, where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.programs import run_two

from mergeops.recover import recover

PROGRAM = """
import os, sys
rank, port, base, out, form = sys.argv[1:]
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": "2"}
os.environ |= {"LOCAL_RANK": rank}
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
model = AutoModelForCausalLM.from_pretrained(base)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.25)
for layer in model.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
from nemo_automodel.components.checkpoint.checkpointing import Checkpointer
from nemo_automodel.components.checkpoint.config import CheckpointingConfig
settings = CheckpointingConfig(checkpoint_dir=out, model_save_format=form, model_repo_id=base,
                               model_cache_dir=out)
checkpointer = Checkpointer(settings, dp_rank=int(rank), tp_rank=0, pp_rank=0)
checkpointer.save_model(model, f"{out}/epoch_0_step_4")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "kind"), [("safetensors", "slices"), ("torch_save", "dcp")], ids=["slices", "dcp"]
)
def test_a_step_between_is_the_weights_that_were_trained(
    trained_base: Path,
    tmp_path: Path,
    form: str,
    kind: str,
) -> None:
    pytest.importorskip("nemo_automodel", reason="NeMo Automodel is not installed")
    run_two(PROGRAM, str(trained_base), str(tmp_path / "run"), form)
    result = recover(tmp_path / "run" / "epoch_0_step_4", tmp_path / "out", base=trained_base)
    assert (result.found.kind, result.found.step, result.found.world_size) == (kind, 4, 2)
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(trained_base / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor + 0.25) for name, tensor in expected.items())
