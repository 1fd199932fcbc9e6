"""Sharded saves of two processes that are killed at a random moment.

The processes are forked from one that has imported everything, so that each try takes a second.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROCESSES = 2
DONE = "done.txt"
"""A line with the name of each checkpoint whose save returned in every process."""


def killed_saves(base: Path, folder: Path, kind: str, seed: int) -> list[str]:
    """Save checkpoint after checkpoint, and kill both processes in between.

    Args:
        base: a model; checkpoint-N holds its weights with N added to each.
        folder: where ``checkpoint-N`` go.
        kind: ``fsdp``, as accelerate saves model and optimizer; ``verl``; or ``slices``, as
            transformers does.
        seed: decides the moment.

    Returns:
        The names of those whose save returned.
    """
    source = random.Random(f"{kind} {seed}")
    began, begin = os.pipe()
    children = []
    for rank in range(PROCESSES):
        child = os.fork()
        if child == 0:
            os.close(began)
            _save_until_killed(base, folder, kind, rank, begin)
        children.append(child)
    os.close(begin)
    # A checkpoint takes some 30 ms; the first byte is written before the first of them.
    assert os.read(began, 1)
    time.sleep(source.uniform(0.0, 0.25))
    source.shuffle(children)
    for child in children:
        os.kill(child, signal.SIGKILL)
        time.sleep(source.choice((0.0, 0.0, 0.02)))
    for child in children:
        os.waitpid(child, 0)
    os.close(began)
    done = folder / DONE
    return done.read_text().split() if done.exists() else []


def _save_until_killed(base: Path, folder: Path, kind: str, rank: int, begin: int) -> None:
    with contextlib.suppress(BaseException):
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "LOCAL_RANK": str(rank)}
        _run(base, folder, kind, rank, begin)
    # The other one was killed: what is left here goes on failing, so it ends as it was meant to.
    os._exit(1)


def _run(base: Path, folder: Path, kind: str, rank: int, begin: int) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES
    )
    mesh = init_device_mesh("cpu", (PROCESSES,))
    model = fully_shard(AutoModelForCausalLM.from_pretrained(base), mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    save = _SAVES[kind]
    for step in range(1, 1000):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        if step == 1:
            dist.barrier()
            os.write(begin, b".")
        save(model, optimizer, folder / f"checkpoint-{step}", rank, step)
        dist.barrier()
        if rank == 0:
            with open(folder / DONE, "a", encoding="utf-8") as file:
                file.write(f"checkpoint-{step}\n")
        dist.barrier()


def _fsdp(model: Any, optimizer: Any, place: Path, rank: int, step: int) -> None:
    import torch.distributed.checkpoint as dcp
    from support.sharded_writers import _save_with_accelerate

    _save_with_accelerate(model, place, rank)
    dcp.save({"momentum": optimizer.state_dict()}, checkpoint_id=place / "optimizer_0")
    if rank == 0:
        (place / "trainer_state.json").write_text("{}")


def _verl(model: Any, optimizer: Any, place: Path, rank: int, step: int) -> None:
    import torch
    import torch.distributed as dist

    # verl/utils/checkpoint/fsdp_checkpoint_manager.py: each process its file, then the tracker.
    actor = place / "actor"
    actor.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), actor / f"model_world_size_{PROCESSES}_rank_{rank}.pt")
    torch.save(optimizer.state_dict(), actor / f"optim_world_size_{PROCESSES}_rank_{rank}.pt")
    dist.barrier()
    if rank == 0:
        (place.parent / "latest_checkpointed_iteration.txt").write_text(str(step))


def _slices(model: Any, optimizer: Any, place: Path, rank: int, step: int) -> None:
    from transformers.distributed.checkpoint import _save_model_checkpoint_distributed

    _save_model_checkpoint_distributed(model, str(place))


_SAVES: dict[str, Callable[..., None]] = {"fsdp": _fsdp, "verl": _verl, "slices": _slices}
