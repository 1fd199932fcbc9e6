"""Merges on a CUDA device: in memory, and streamed from files.

    python -m benchmarks.gpu [--methods ties,linear] [--out benchmarks]

In memory: weights of a 7 B Llama's layer and embedding lie on the device in bfloat16; each method
merges them with float32 arithmetic. What it could reach is set by the memory: every input read and
the result written once, at the speed of a plain copy on this device. Streamed: a merge of generated
checkpoints on the device, against reading and writing the same bytes, and against the bus.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import click
import torch

from benchmarks import floor, jobs
from benchmarks.models import SIZES, make_models
from mergeops import methods
from mergeops.methods.steps.whole import merge_tensors

LAYER = ((4096, 4096),) * 4 + ((11008, 4096),) * 2 + ((4096, 11008),)
OUTSIDE = ((32000, 4096),) * 2
LAYERS = 32
CHUNK = 1 << 24
REPEATS = 5


@click.command()
@click.option("--methods", "names", default=",".join(jobs.JOBS))
@click.option("--size", type=click.Choice(list(SIZES)), default="1b", help="Of the streamed merge.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("/tmp/mergeops-bench"))
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent)
def bench(names: str, size: str, folder: Path, out: Path) -> None:
    """Print and write the tables of this device."""
    if not torch.cuda.is_available():
        raise click.ClickException("torch sees no CUDA device")
    device = torch.device("cuda")
    copy, bus = copy_speed(device), bus_speed(device)
    lines = [
        f"# On {torch.cuda.get_device_name(device)}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, CUDA {torch.version.cuda}; a "
        f"copy on the device moves {copy / 1e9:.0f} GB/s (read and write together), from pinned "
        f"memory {bus / 1e9:.1f} GB/s.",
        "",
        "In memory, the shape of Llama-2-7B, bfloat16, float32 arithmetic:",
        "",
        "| method | ms for all weights | % of the copy's bandwidth |",
        "|---|---|---|",
    ]
    for name in names.split(","):
        seconds, nbytes = in_memory(name, device)
        row = f"| {name} | {seconds * 1e3:.1f} | {100 * nbytes / seconds / copy:.0f} |"
        click.echo(row)
        lines.append(row)
    lines += [
        "",
        f"Streamed, {SIZES[size].parameters / 1e9:.2f} B parameters, warm page cache:",
        "",
        "| method | seconds | floor (read and write only) | GB of inputs in a second |",
        "|---|---|---|---|",
    ]
    for name in names.split(","):
        seconds, least, nbytes = streamed(name, size, folder)
        row = f"| {name} | {seconds:.2f} | {least:.2f} | {nbytes / seconds / 1e9:.1f} |"
        click.echo(row)
        lines.append(row)
    (out / "RESULTS-GPU.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def in_memory(name: str, device: torch.device) -> tuple[float, int]:
    """Seconds for all weights of the model, and how many bytes must move for that."""
    method, job = methods.get(name), jobs.JOBS[name]
    n = len(job.sources)
    parameters = {**job.each, **job.whole}
    seconds, nbytes = 0.0, 0
    for shape, count in [*((s, LAYERS) for s in LAYER), *((s, 1) for s in OUTSIDE)]:
        generator = torch.Generator(device).manual_seed(1)
        base = torch.randn(shape, generator=generator, device=device) * 0.02
        noise = torch.randn(n, *shape, generator=generator, device=device) * 6e-4
        sources = (base + noise).bfloat16()
        base = base.bfloat16()
        del noise
        used = base if method.needs_base or (method.optional_base and job.base) else None
        seconds += count * device_seconds(
            lambda sources=sources, used=used: merge_tensors(  # type: ignore[misc]
                name, sources, used, parameters, chunk=CHUNK, compute=torch.float32
            )
        )
        nbytes += count * base.nbytes * (n + 1 + (used is not None))
    return seconds, nbytes


def device_seconds(work: Callable[[], object]) -> float:
    """Median time of the work on the device, after one try."""
    times: list[float] = []
    for _ in range(REPEATS + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times[1:])


def copy_speed(device: torch.device) -> float:
    """Bytes read and written in a second by a plain copy on the device."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / device_seconds(lambda: target.copy_(source))


def bus_speed(device: torch.device) -> float:
    """Bytes in a second from pinned memory to the device."""
    source = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    return source.nbytes / device_seconds(lambda: target.copy_(source, non_blocking=True))


def streamed(name: str, size: str, folder: Path) -> tuple[float, float, int]:
    """Seconds of a merge of files on the device, seconds of the floor, bytes of the inputs."""
    from mergeops import workshop
    from mergeops.progress import Progress
    from mergeops.recipe import composition as compose

    models = make_models(size, folder)
    config = folder / "gpu.yml"
    config.write_text(jobs.config(name, models), encoding="utf-8")
    files = jobs.inputs(name, models)
    out = folder / "gpu-out"
    overrides = [f"output.dir={folder / 'gpu-work'}", "output.device=cuda"]
    recipe = compose.compose(overrides, recipe_file=config)

    def merge() -> None:
        workshop.merge_only(recipe, out, Progress(quiet=True))

    def move() -> None:
        out.mkdir()
        floor.move_bytes(
            str(out / "x"), files[0].stat().st_size, list(map(str, files)), jobs.processors()
        )

    seconds, least = (_median_seconds(work, out) for work in (merge, move))
    return seconds, least, sum(file.stat().st_size for file in files)


def _median_seconds(work: Callable[[], None], out: Path) -> float:
    times = []
    for _ in range(REPEATS + 1):
        shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    shutil.rmtree(out, ignore_errors=True)
    return median(times[1:])


if __name__ == "__main__":
    bench()
