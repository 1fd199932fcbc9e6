"""DeepSpeed's own files, and its own consolidation; where DeepSpeed is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.programs import run_two

PROGRAM = """
import os, sys
rank, port, base, out, stage = sys.argv[1:]
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": "2"}
os.environ |= {"LOCAL_RANK": rank, "DS_ACCELERATOR": "cpu"}
import deepspeed, torch
from transformers import AutoModelForCausalLM
# It would compile an extension that only makes messages quicker.
deepspeed.comm.torch.build_shm_op = lambda: None
deepspeed.init_distributed("gloo")
model = AutoModelForCausalLM.from_pretrained(base)
is_tied = model.config.tie_word_embeddings
frozen = model.model.layers[0].self_attn.q_proj if is_tied else model.model.embed_tokens
frozen.weight.requires_grad_(False)
settings = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": int(stage)},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    "bf16": {"enabled": True},
}
trained = [p for p in model.parameters() if p.requires_grad]
engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=settings)
ids = torch.arange(8)[None] + int(rank)
engine.backward(engine(input_ids=ids, labels=ids).loss)
engine.step()
engine.save_checkpoint(out)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_files_are_read_as_deepspeed_does(
    trained_base: Path, read_all: Callable[[Path], dict[str, Any]], tmp_path: Path, stage: int
) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    run = tmp_path / "run"
    run_two(PROGRAM, str(trained_base), str(run), str(stage))
    found = read_all(run)
    if stage == 3:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        expected = get_fp32_state_dict_from_zero_checkpoint(str(run))
    else:
        file = run / "global_step1" / "mp_rank_00_model_states.pt"
        expected = torch.load(file, weights_only=True)["module"]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].equal(tensor)


MIXTURE = """
import os, sys
rank, port, out = sys.argv[1:]
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": "2"}
os.environ |= {"LOCAL_RANK": rank, "DS_ACCELERATOR": "cpu"}
import deepspeed, torch
from deepspeed.moe.layer import MoE
# It would compile an extension that only makes messages quicker.
deepspeed.comm.torch.build_shm_op = lambda: None
deepspeed.init_distributed("gloo")
torch.manual_seed(0)

class Mixture(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.moe = MoE(8, torch.nn.Linear(8, 8), num_experts=4, ep_size=2, k=1)

    def forward(self, x):
        return self.moe(self.first(x))[0].sum()

model = Mixture()
settings = {"train_micro_batch_size_per_gpu": 1}
engine, *_ = deepspeed.initialize(model=model, config=settings,
                                  model_parameters=model.parameters())
engine.save_checkpoint(out, tag="global_step4")
torch.save(engine.module.state_dict(), f"{out}/own_{rank}.pt")
"""


@pytest.mark.slow
def test_files_of_experts_are_the_processes_own_weights(
    read_all: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    run = tmp_path / "run"
    run_two(MIXTURE, str(run))
    found = read_all(run)
    local = "moe.deepspeed_moe.experts.deepspeed_experts."
    for rank in range(2):
        own = torch.load(run / f"own_{rank}.pt", weights_only=True)
        for name, tensor in own.items():
            if name.startswith(local):
                expert, _, rest = name.removeprefix(local).partition(".")
                name = f"{local}{int(expert) + 2 * rank}.{rest}"
            assert found[name].equal(tensor), name
    assert sum(name.startswith(local) for name in found) == 8


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_universal_checkpoint_is_the_one_that_it_was_made_of(
    tiny_llama: Callable[..., Path],
    read_all: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
    stage: int,
    is_tied: bool,
) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    run = tmp_path / "run"
    base = tiny_llama(vocabulary_size=131, tied=is_tied)
    run_two(PROGRAM, str(base), str(run), str(stage))
    [step] = run.glob("global_step*")
    made = run / f"{step.name}_universal"
    words = ["--input_folder", step, "--output_folder", made, "--inject_missing_state"]
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "DS_ACCELERATOR": "cpu"}
    subprocess.run(command, check=True, env=environment)
    universal = read_all(made)
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    expected = get_fp32_state_dict_from_zero_checkpoint(str(run))
    if stage == 1:
        # Frozen parameters are in the 16-bit model only.
        whole = torch.load(step / "mp_rank_00_model_states.pt", weights_only=True)["module"]
        expected = {name: tensor.float() for name, tensor in whole.items()} | expected
    assert universal.keys() == expected.keys()
    for name, tensor in expected.items():
        assert universal[name].float().equal(tensor.float()), name
