"""Memory of every method on a model with one very large tensor.

    python -m benchmarks.memory [--rows 1048576] [--out benchmarks]

The default is an embedding of 4.3 GB (2048 columns, bfloat16) in a base and two fine-tunes of it;
together with the result they take 17 GB of disk.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import yaml

from benchmarks import machine
from benchmarks.measure import measure
from mergeops import methods

COLUMNS = 2048
TILE = 1 << 14
"""Rows that are drawn; a tensor repeats them."""
CHANGE = 0.03
"""Of a weight's scale."""


@click.command()
@click.option("--rows", type=click.IntRange(min=TILE), default=1 << 20, show_default=True)
@click.option("--methods", "names", default=",".join(methods.names()), help="Names with commas.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("/tmp/mergeops-memory"))
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent)
def bench(rows: int, names: str, folder: Path, out: Path) -> None:
    """Merge by each method in a process of its own and write MEMORY.md."""
    rows = rows // TILE * TILE
    models = {name: make_model(folder / name, rows, i) for i, name in enumerate(("base", "a", "b"))}
    gigabytes = rows * COLUMNS * 2 / 1e9
    lines = [
        f"# Memory with one tensor of {gigabytes:.1f} GB",
        "",
        f"Measured {datetime.now(UTC):%Y-%m-%d} with `python -m benchmarks.memory`: a base and two "
        f"fine-tunes of it, each one tensor of {rows} x {COLUMNS} in bfloat16, defaults of each "
        "method. RssAnon is the process's own memory, without mapped files, looked at every 20 ms; "
        "the time is that of the whole process, and depends on what the page cache holds.",
        "",
        "| method | peak RssAnon, MB | s |",
        "|---|---|---|",
    ]
    for name in names.split(","):
        recipe = folder / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(recipe_for(name, models)), encoding="utf-8")
        result = folder / "merged"
        shutil.rmtree(result, ignore_errors=True)
        command = [sys.executable, "-m", "mergeops", "merge", str(recipe), str(result)]
        wall, _, peak = measure(command, os.environ, folder, folder / "log.txt")
        lines.append(f"| {name} | {peak / 1e6:.0f} | {wall:.0f} |")
        click.echo(lines[-1], err=True)
    shutil.rmtree(folder)
    lines += ["", *(f"* {key}: {value}" for key, value in machine.describe().items()), ""]
    (out / "MEMORY.md").write_text("\n".join(lines), encoding="utf-8")
    click.echo(f"wrote {out / 'MEMORY.md'}")


def recipe_for(name: str, models: Mapping[str, Path]) -> dict[str, Any]:
    """A recipe of both fine-tunes, or as many as the method takes."""
    method = methods.get(name)
    sources = {n: str(models[n]) for n in ("a", "b")[: method.max_sources]}
    base = {"base": str(models["base"])} if method.uses_base(True) else {}
    return {**base, "sources": sources, "method": {"name": name}}


def make_model(folder: Path, rows: int, number: int) -> Path:
    """A checkpoint of one tensor; number 0 is the base of the others."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    tile = torch.randn(TILE, COLUMNS, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    if number:
        change = torch.randn(TILE, COLUMNS, generator=torch.Generator().manual_seed(number))
        tile = tile.bfloat16().float() + change.mul_(0.02 * CHANGE)
    raw = tile.bfloat16().view(torch.uint8).numpy().tobytes()
    nbytes = rows * COLUMNS * 2
    name = "model.embed_tokens.weight"
    entry = {"dtype": "BF16", "shape": [rows, COLUMNS], "data_offsets": [0, nbytes]}
    header = json.dumps({name: entry}).encode()
    header += b" " * (-len(header) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(0, rows, TILE):
            file.write(raw)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": rows}))
    return folder


if __name__ == "__main__":
    bench()
