"""DeepSpeed's own files, and its own consolidation; where DeepSpeed is installed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = """
import os, sys
rank, port, base, out, stage = sys.argv[1:]
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": "2"}
os.environ |= {"LOCAL_RANK": rank, "DS_ACCELERATOR": "cpu"}
import deepspeed, torch
from transformers import AutoModelForCausalLM
deepspeed.init_distributed("gloo")
model = AutoModelForCausalLM.from_pretrained(base)
model.model.embed_tokens.weight.requires_grad_(False)
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    run = tmp_path / "run"
    words = [port, str(trained_base), str(run), str(stage)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), *words], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
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
