"""What sharded trainings leave, written by the libraries themselves in two processes on loopback.

Run as a script it is one of the processes: RANK PORT BASE OUT.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

PROCESSES = 2


def write_all(base: Path, out: Path) -> None:
    """Have two processes write, of the model in ``base``: ``fsdp``, ``lora``, ``together``,
    ``ranks``, ``columns``, ``slices`` and ``verl``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(port), str(base), str(out)]
    command = [sys.executable, __file__]
    processes = [
        subprocess.Popen(
            [*command, str(rank), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(PROCESSES)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text.decode()[-3000:]


def _process(rank: int, port: str, base: Path, out: Path) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
    }
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor
    from transformers import AutoModelForCausalLM
    from transformers.distributed.checkpoint import _save_model_checkpoint_distributed

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (PROCESSES,))

    def sharded(model: Any) -> Any:
        for layer in model.get_decoder().layers if hasattr(model, "get_decoder") else []:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    model = sharded(AutoModelForCausalLM.from_pretrained(base))
    _save_with_accelerate(model, out / "fsdp" / "checkpoint-4", rank)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save(
        {"model": model_state, "optimizer": optimizer_state, "step": 8},
        checkpoint_id=out / "together" / "checkpoint-8",
    )
    _save_with_accelerate(model, out / "ranks" / "checkpoint-4", rank, use_dcp=False)
    (out / "verl" / "global_step_4" / "actor").mkdir(parents=True, exist_ok=True)
    name = f"model_world_size_{PROCESSES}_rank_{rank}.pt"
    torch.save(model.state_dict(), out / "verl" / "global_step_4" / "actor" / name)
    whole = {name: tensor.full_tensor() for name, tensor in get_model_state_dict(model).items()}
    if rank == 0:
        torch.save(whole, out / "trained.pt")
    columns = {
        name: distribute_tensor(tensor, mesh, [Shard(tensor.dim() - 1)])
        for name, tensor in whole.items()
    }
    # Three axes, cut in the middle: an expert's rows; and one whose rows are columns.
    cube = torch.arange(3 * 5 * 4.0).view(3, 5, 4)
    columns["cube"] = distribute_tensor(cube, mesh, [Shard(1)])
    columns["turned"] = torch.arange(12.0).view(3, 4).t()
    columns["scalar"] = torch.tensor(2.5)
    dcp.save(columns, checkpoint_id=out / "columns")
    # What save_pretrained(distributed_checkpoint=True) calls for a model that transformers sharded.
    _save_model_checkpoint_distributed(model.to(torch.bfloat16), str(out / "slices"))
    _lora(AutoModelForCausalLM.from_pretrained(base), mesh, out, rank)
    dist.destroy_process_group()


def _lora(base: Any, mesh: Any, out: Path, rank: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(base, settings)
    if rank == 0:
        model.save_pretrained(out / "adapter")
    fully_shard(model, mesh=mesh)
    _save_with_accelerate(model, out / "lora" / "checkpoint-4", rank, adapter_only=True)


def _save_with_accelerate(model: Any, folder: Path, rank: int, **more: Any) -> None:
    """accelerate's own save, which HF Trainer calls; it refuses only to prepare FSDP on a CPU."""
    import torch.distributed as dist
    from accelerate import PartialState
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import save_fsdp_model

    PartialState(cpu=True)
    folder.mkdir(parents=True, exist_ok=True)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    accelerator = types.SimpleNamespace(
        is_main_process=rank == 0,
        is_fsdp2=True,
        process_index=rank,
        num_processes=PROCESSES,
        wait_for_everyone=dist.barrier,
    )
    save_fsdp_model(plugin, accelerator, model, str(folder), **more)


if __name__ == "__main__":
    _process(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
