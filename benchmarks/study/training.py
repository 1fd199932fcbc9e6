"""Fine-tune all weights on the answers, in mixed precision; what is kept is bfloat16."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.study.plan import RUNS, StudyRun
from demo.skills import Item

WARM_UP = 0.1
"""Share of the steps over which the rate rises; after that it stays, as windows want it."""
PARTS = 2
"""Runs of even and of odd seeds see disjoint halves of the data."""


def train_all(
    out: Path,
    base: Path,
    items: Mapping[str, list[Item]],
    *,
    steps: int,
    batch: int,
    at_once: int,
) -> Iterator[dict[str, Any]]:
    """Train the runs that are not finished; give facts of each that ends here.

    Args:
        out: a folder for each run is made here, whole or not at all.
        base: the model they start from.
        items: what they train on, by skill.
        steps: of a run that goes to its end.
        batch: questions of one step.
        at_once: processes, of one thread each: two threads of one step wait for each other wherever
            other programs want the same cores.
    """
    waiting = [run for run in RUNS if not (out / run.name).is_dir()]
    out.mkdir(parents=True, exist_ok=True)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, fresh, one_thread) as pool:
        needed = {run: {skill: items[skill] for skill in run.skills} for run in waiting}
        begun = [
            pool.submit(train_one, run, base, needed[run], out, steps, batch) for run in waiting
        ]
        for ended in as_completed(begun):
            yield ended.result()


def one_thread() -> None:
    """What a process of several begins with."""
    import torch

    torch.set_num_threads(1)


def last_checkpoint(out: Path, run: StudyRun) -> Path:
    """What a run left, the newest."""
    return checkpoints_of(out, run)[-1]


def checkpoints_of(out: Path, run: StudyRun) -> list[Path]:
    """All that a run kept, oldest first."""
    found = (out / run.name).glob("checkpoint-*")
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def train_one(
    run: StudyRun,
    base: Path,
    items: Mapping[str, list[Item]],
    out: Path,
    steps: int,
    batch: int,
) -> dict[str, Any]:
    """Train a run, from its first step; give its steps, processor seconds and losses.

    Args:
        run: which.
        base: as of ``train_all``, as are the others.
    """
    partial = out / f".{run.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    facts = _train(run, base, _batches(run, items, batch), partial, steps)
    (partial / "facts.json").write_text(json.dumps(facts))
    partial.rename(out / run.name)
    return facts


def _train(
    run: StudyRun, base: Path, batches: Iterator[list[Item]], out: Path, steps: int
) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from demo.finetune import IGNORED_LABEL, collate, encode

    torch.manual_seed(run.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.rate, weight_decay=0.0, fused=True)
    made = math.ceil(steps * run.share)
    keep_at = {made - i * (made // run.checkpoints) for i in range(run.checkpoints)}
    losses, began = [], time.process_time()
    for step in range(1, made + 1):
        rate = run.rate * min(1.0, step / max(WARM_UP * steps, 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = collate([encode(tokenizer, item) for item in next(batches)], tokenizer.pad_token_id)
        # Logits are taken where an answer is read, which is a tenth of the places.
        labels = rows["labels"][:, 1:]
        learnt = labels != IGNORED_LABEL
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(
                input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]
            ).last_hidden_state
            logits = model.lm_head(hidden[:, :-1][learnt])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[learnt])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(float(loss.detach()), 4))
        if step in keep_at:
            _save(model, tokenizer, out / f"checkpoint-{step}")
    seconds = round(time.process_time() - began, 1)
    return {"run": run.name, "steps": made, "cpu_s": seconds, "losses": losses}


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    import torch

    # The head is the embedding; converted, the two would be no longer one.
    tied = "lm_head.weight"
    weights = {n: t.to(torch.bfloat16) for n, t in model.state_dict().items() if n != tied}
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def _batches(run: StudyRun, items: Mapping[str, list[Item]], batch: int) -> Iterator[list[Item]]:
    """Endless, each of one skill, so that its rows are of like length."""
    random = Random(run.seed)
    pools = {skill: items[skill][run.seed % PARTS :: PARTS] for skill in run.skills}
    while True:
        for skill in run.skills:
            yield random.sample(pools[skill], batch)
