"""Runs of transformers' Trainer with accelerate's FSDP2 in two processes on loopback, in MLflow.

Run as a script it is one of the processes: RANK PORT BASE OUTPUT URI NAME=HOW...
"""

from __future__ import annotations

import inspect
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

PROCESSES = 2
EXPERIMENT = "finetunes"
ROWS = [[1, 5 + i, 7, 2] for i in range(8)]


def train_sharded(base: Path, output: Path, uri: str, **runs: str) -> None:
    """Train four steps with a sharded checkpoint every two, run after run in the same processes.

    Args:
        base: the model.
        output: below it each run has an output directory of its name.
        uri: MLflow's.
        runs: name -> how, words with blanks between them: ``lora``; ``callback`` for
            MergeReadyCallback; ``whole`` to keep what FSDP gathers in ``whole.pt``; ``killed``, of
            the last one, for kill -9 of both processes in the third step.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [port, str(base), str(output), uri, *(f"{name}={how}" for name, how in runs.items())]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(PROCESSES)
    ]
    said = [process.communicate(timeout=300)[0].decode() for process in processes]
    is_killed = any("killed" in how.split() for how in runs.values())
    expected = -signal.SIGKILL if is_killed else 0
    codes = [process.returncode for process in processes]
    assert codes == [expected] * PROCESSES, "\n".join(said)[-6000:]


def allow_fsdp_on_cpu() -> None:
    """accelerate knows no FSDP on a CPU; all of it works there but this list of devices."""
    from accelerate import state

    source = textwrap.dedent(inspect.getsource(state.AcceleratorState.__init__))
    listed = "DistributedType.MULTI_NEURON,\n"
    assert listed in source
    names: dict[str, Any] = {}
    changed = source.replace(listed, f"{listed}DistributedType.MULTI_CPU,\n", 1)
    exec(changed, state.__dict__, names)
    state.AcceleratorState.__init__ = names["__init__"]


def _process(rank: str, port: str, base: str, output: str, uri: str, runs: list[str]) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_EXPERIMENT_NAME": EXPERIMENT,
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
    }
    import mlflow
    import torch

    torch.set_num_threads(1)
    allow_fsdp_on_cpu()
    for run in runs:
        name, _, how = run.partition("=")
        _train(base, str(Path(output, name)), name, how.split())
        mlflow.end_run()
    torch.distributed.destroy_process_group()


def _train(base: str, output: str, name: str, how: list[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Killed(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 3 and "killed" in how:
                torch.distributed.barrier()
                os.kill(os.getpid(), signal.SIGKILL)

    callbacks: list[Any] = [Killed()]
    if "callback" in how:
        from mergeops import MergeReadyCallback

        callbacks.append(MergeReadyCallback())
    model = AutoModelForCausalLM.from_pretrained(base)
    if "lora" in how:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"])
        model = get_peft_model(model, settings)
    arguments = TrainingArguments(
        output_dir=output,
        run_name=name,
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        report_to="mlflow",
        use_cpu=True,
        disable_tqdm=True,
        fsdp="full_shard",
        fsdp_config={
            "version": 2,
            "fsdp_version": 2,
            "state_dict_type": "SHARDED_STATE_DICT",
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        },
    )
    rows = [{"input_ids": text, "labels": text} for text in ROWS]
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks)
    trainer.train()
    if "whole" in how:
        # What FSDP's own gathering says that the weights are.
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True)
        tensors = get_model_state_dict(trainer.model, options=options)
        if trainer.is_world_process_zero():
            torch.save(tensors, Path(output, "whole.pt"))


if __name__ == "__main__":
    rank, port, base, output, uri = sys.argv[1:6]
    _process(rank, port, base, output, uri, sys.argv[6:])
