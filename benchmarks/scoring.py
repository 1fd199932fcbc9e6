"""Scoring with shared computation against lm-eval's own model, side by side: SCORING.md.

    python -m benchmarks.scoring [--tasks DIR] [--only TASK ...] [--items N] [--pairs N]

SmolLM2-135M-Instruct in float32 on the CPU. Both models answer the same requests in turn, the same
weights in memory, the same batch size; the ratio is taken pair by pair, of wall and of CPU time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.machine import processor
from benchmarks.scoring_items import SHAPES, write_tasks

OUT = Path(__file__).parent / "SCORING.md"
BATCH = 32


@dataclass(frozen=True)
class Measured:
    """One task, asked both ways several times."""

    task: str
    items: int
    requests: int
    tokens: int
    """That lm-eval's model reads, padding included."""
    rows: int
    """Tokens that ours reads."""
    check_s: float
    """Wall time of the self-check, once for each model unless a later task has wider rows."""
    theirs: list[tuple[float, float]]
    """(wall, CPU) seconds of each pass."""
    ours: list[tuple[float, float]]
    difference: float
    """Largest of the log-likelihoods."""
    flips: int
    """Items whose likeliest answer is another, where the two likeliest are not a tie (1e-4)."""

    def ratios(self, clock: int) -> list[float]:
        """Of each pair; clock 0 is wall time, 1 CPU time."""
        return [a[clock] / b[clock] for a, b in zip(self.theirs, self.ours, strict=True)]

    def ratios_checked(self) -> list[float]:
        """Of wall time, where ours pays the self-check in every pass."""
        pairs = zip(self.theirs, self.ours, strict=True)
        return [a[0] / (self.check_s + b[0]) for a, b in pairs]

    def beyond_tokens(self) -> float:
        """Median ratio of wall time, over the ratio of tokens."""
        return statistics.median(self.ratios(0)) * self.rows / self.tokens


def main() -> None:
    """Measure, print and write SCORING.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=Path, help="a directory of task YAML files of your own")
    parser.add_argument("--only", nargs="+", metavar="TASK", help="some of the tasks")
    parser.add_argument("--items", type=int, default=48, help="of each task")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.tasks or Path(scratch)
        names = sorted(p.stem for p in folder.glob("*.yaml")) or write_tasks(folder, args.items)
        names = [name for name in names if not args.only or name in args.only]
        measured = measure(folder, names, args.items, args.pairs, args.threads)
    text = page(measured, args.threads, args.pairs)
    args.out.write_text(text, encoding="utf-8")
    print(text)


def measure(folder: Path, names: list[str], items: int, pairs: int, threads: int) -> list[Measured]:
    """Every task both ways."""
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM
    from rich.progress import Progress

    from demo.smollm2 import cached_base
    from mergeops.evaluate.answers import build_requests
    from mergeops.evaluate.lm import TreeLM
    from mergeops.evaluate.silence import quiet
    from mergeops.evaluate.tasks import load_tasks
    from mergeops.recipe.settings import EvaluateSpec

    torch.set_num_threads(threads)
    with Progress(transient=True) as progress:
        base = cached_base(progress)
    spec = EvaluateSpec(
        tasks=tuple(names), include_path=str(folder), limit=items, confirm_fraction=0.0
    )
    measured = []
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        theirs = HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=BATCH)
        for name, loaded in load_tasks(spec).tasks.items():
            # As on a machine where nothing is kept of this kind of model.
            os.environ["XDG_CACHE_HOME"] = str(folder / "cache" / name)
            ours = TreeLM(model, tokenizer=tokenizer, batch_size=BATCH)
            requests = build_requests(loaded, "dev", spec, None)
            measured.append(_measure(name, requests, theirs, ours, pairs))
    return measured


def _measure(name: str, requests: list[Any], theirs: Any, ours: Any, pairs: int) -> Measured:
    encoded = [(r.args, *theirs._encode_pair(*r.args)) for r in requests]
    inputs = [ours._input(request) for request in encoded]
    distinct = sorted({tuple(i) for i in inputs}, key=len, reverse=True)
    batches = [distinct[i : i + BATCH] for i in range(0, len(distinct), BATCH)]
    groups = ours.pack(encoded)
    check_s, _, _ = _timed(lambda: ours.check(groups, encoded))
    passes: dict[str, list[tuple[float, float]]] = {"theirs": [], "ours": []}
    answers = {}
    for _ in range(pairs):
        for label, lm in (("theirs", theirs), ("ours", ours)):
            wall, cpu, answers[label] = _timed(
                partial(lm.loglikelihood, requests, disable_tqdm=True)
            )
            passes[label].append((wall, cpu))
    if ours.fallback:
        raise SystemExit(f"{name}: nothing was shared: {ours.fallback}")
    return Measured(
        task=name,
        items=len({r.doc_id for r in requests}),
        requests=len(requests),
        tokens=sum(len(batch) * len(batch[0]) for batch in batches),
        rows=sum(len(g.prefix) + sum(map(len, g.rows)) for g in groups),
        check_s=check_s,
        theirs=passes["theirs"],
        ours=passes["ours"],
        difference=max(
            abs(a[0] - b[0]) for a, b in zip(answers["theirs"], answers["ours"], strict=True)
        ),
        flips=_flips(requests, answers["theirs"], answers["ours"]),
    )


def _timed(do: Callable[[], Any]) -> tuple[float, float, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stderr(None):
        result = do()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def _flips(requests: list[Any], theirs: list[Any], ours: list[Any]) -> int:
    items: dict[int, list[tuple[float, float]]] = {}
    for request, a, b in zip(requests, theirs, ours, strict=True):
        items.setdefault(request.doc_id, []).append((a[0], b[0]))
    count = 0
    for pairs in items.values():
        best = max(range(len(pairs)), key=lambda i: pairs[i][1])
        count += max(a for a, _ in pairs) - pairs[best][0] > 1e-4
    return count


def page(measured: list[Measured], threads: int, pairs: int) -> str:
    """SCORING.md."""
    lines = [
        "# Scoring: what requests share is computed once",
        "",
        f"SmolLM2-135M-Instruct, float32, {threads} threads, batch size {BATCH}; medians of "
        f"{pairs} interleaved pairs, the lowest and highest in brackets. `{processor()}`, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; lm-eval {version('lm_eval')}, "
        f"torch {version('torch')}, transformers {version('transformers')}. "
        "Made by `python -m benchmarks.scoring`.",
        "",
        "| task | items, requests | lm-eval's tokens / ours | times as fast, wall | CPU | lm-eval "
        "s | ours s | self-check s | times as fast with it | largest difference | other choices |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for m in measured:
        lines.append(
            f"| {m.task} | {m.items}, {m.requests} | {m.tokens} / {m.rows} | {_spread(m.ratios(0))}"
            f" | {_spread(m.ratios(1))} | {statistics.median(w for w, _ in m.theirs):.1f} | "
            f"{statistics.median(w for w, _ in m.ours):.1f} | {m.check_s:.1f} | "
            f"{_spread(m.ratios_checked())} | {m.difference:.0e} | {m.flips} |"
        )
    lines += [""]
    lines += [f"- `{m.task}`: {SHAPES[m.task]}" for m in measured if m.task in SHAPES]
    lines += [
        "",
        "Times as fast, over the ratio of tokens: "
        + ", ".join(f"{m.beyond_tokens():.2f} for `{m.task}`" for m in measured)
        + ". The self-check compares lm-eval's way and ours on one request; a kind of "
        "model pays it once on a machine, and again where a later task has a longer request or a "
        "wider row.",
        "",
    ]
    return "\n".join(lines)


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.1f} [{min(ratios):.1f}, {max(ratios):.1f}]"


if __name__ == "__main__":
    main()
