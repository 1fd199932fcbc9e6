"""Putting together what a sharded training left: time, memory and bytes, beside the libraries' own.

    python -m benchmarks.recover [--layers 18] [--kinds fsdp,zero3] [--folder /tmp/mergeops-recover]

Two processes write the folders: torch.distributed.checkpoint a model with AdamW's states in one
folder (by default 4 GB), and DeepSpeed, where it is installed, a checkpoint of ZeRO-3. Then each
contestant makes safetensors files of them, in a process of its own, one after the other.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import click

from benchmarks.measure import measure

HIDDEN = 1024
VOCABULARY = 32_000

WRITE = """
import os, sys
rank, port, kind, layers, out = sys.argv[1:]
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": "2"}
os.environ |= {"LOCAL_RANK": rank, "DS_ACCELERATOR": "cpu"}
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM
torch.set_num_threads(1)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=2752,
                     num_hidden_layers=int(layers), num_attention_heads=16)
model = LlamaForCausalLM(config)
if rank == "0":
    config.save_pretrained(out)
ids = torch.arange(8)[None]
if kind == "zero3":
    import deepspeed
    # It would compile an extension that only makes messages quicker.
    deepspeed.comm.torch.build_shm_op = lambda: None
    deepspeed.init_distributed("gloo")
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3},
                "bf16": {"enabled": True},
                "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}}
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(),
                                      config=settings)
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()
    engine.save_checkpoint(out)
else:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=out)
""".replace("VOCABULARY", str(VOCABULARY)).replace("HIDDEN", str(HIDDEN))

OURS = """
import sys
from pathlib import Path
from mergeops.recover import recover
recover(Path(sys.argv[1]), Path(sys.argv[2]))
counts = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
print("read", counts["rchar"])
"""
THEIRS = {
    "fsdp": (
        "dcp_to_torch_save, then save_file",
        """
import sys
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
dcp_to_torch_save(sys.argv[1], sys.argv[2] + ".pt")
model = torch.load(sys.argv[2] + ".pt", weights_only=False)["model"]
save_file(model, sys.argv[2])
""",
    ),
    "zero3": (
        "zero_to_fp32.py --safe_serialization",
        """
import sys
from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict
convert_zero_checkpoint_to_fp32_state_dict(sys.argv[1], sys.argv[2], safe_serialization=True)
""",
    ),
}


@click.command()
@click.option("--layers", type=int, default=22, show_default=True, help="22 make 4 GB with states.")
@click.option("--kinds", default="fsdp,zero3", show_default=True)
@click.option("--times", type=int, default=2, show_default=True, help="Runs; the last ones count.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("/tmp/mergeops-recover"))
def bench(layers: int, kinds: str, times: int, folder: Path) -> None:
    """Print a row for each contestant and kind."""
    for kind in kinds.split(","):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            _contest(kind, layers, times, folder)
        finally:
            shutil.rmtree(folder)


def _contest(kind: str, layers: int, times: int, folder: Path) -> None:
    saved = folder / "saved"
    _write(kind, layers, saved)
    size = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
    click.echo(f"{kind}: {size / 1e9:.2f} GB")
    name, program = THEIRS[kind]
    for _ in range(times):
        for who, text in (("mergeops recover", OURS), (name, program)):
            command = [sys.executable, "-c", text, str(saved), str(folder / "out")]
            log = folder / "log.txt"
            wall, cpu, peak = measure(command, os.environ, folder, log)
            said = [line for line in log.read_text().splitlines() if line.startswith("read ")]
            read = f", {int(said[0].split()[1]) / 1e9:.2f} GB read" if said else ""
            click.echo(f"  {who}: {wall:.1f} s, {cpu:.1f} s CPU, {peak / 1e6:.0f} MB{read}")
            for made in folder.glob("out*"):
                shutil.rmtree(made) if made.is_dir() else made.unlink()


def _write(kind: str, layers: int, out: Path) -> None:
    out.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [port, kind, str(layers), str(out)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, str(rank), *words], stdout=subprocess.DEVNULL
        )
        for rank in range(2)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise click.ClickException(f"the processes that write {kind} ended with {codes}")


if __name__ == "__main__":
    bench()
