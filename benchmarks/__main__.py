"""``make bench``: measure, one process after another, and write results, a plot and the numbers.

The results are RESULTS.md for the size 1b, and RESULTS-SIZE.md for others.

Every pair runs mergekit, mergeops and the floor one after the other, so that what disturbs the
machine disturbs all three. A cut measurement goes on where it was when run again with ``--resume``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks import jobs, machine, plot, table
from benchmarks.measure import Measurement, measure
from benchmarks.models import SIZES, make_models

HERE = Path(__file__).parent


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="1b", show_default=True)
@click.option("--methods", default=",".join(jobs.JOBS), help="Names with commas between.")
@click.option("--pairs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("/tmp/mergeops-bench"),
    show_default=True,
    help="For the generated checkpoints and the merges.",
)
@click.option("--resume", is_flag=True, help="Keep what an earlier, cut run has measured.")
@click.option("--out", type=click.Path(path_type=Path), default=HERE, help="For the results.")
@click.option(
    "--earlier",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A checkout of an earlier mergeops, measured beside this one.",
)
def bench(
    size: str,
    methods: str,
    pairs: int,
    folder: Path,
    resume: bool,
    out: Path,
    earlier: Path | None,
) -> None:
    """Compare mergekit, mergeops and the cost of the bytes alone."""
    names = [name.strip() for name in methods.split(",")]
    if unknown := [name for name in names if name not in jobs.JOBS]:
        raise click.UsageError(f"unknown: {', '.join(unknown)}; allowed: {', '.join(jobs.JOBS)}")
    click.echo(f"checkpoints of size {size} in {folder}", err=True)
    make_models(size, folder)
    out.mkdir(parents=True, exist_ok=True)
    # Each machine has its own numbers: those of two make no ratio.
    numbers = out / f"results-{size}-{machine.slug()}.jsonl"
    # Before what is measured changes the checkout.
    about = described(numbers.with_suffix(".json"), resume)
    if earlier is not None:
        about["earlier mergeops"] = machine.commit_of(earlier)
    if not resume:
        numbers.unlink(missing_ok=True)
    Session(size, folder, numbers, earlier).run(names, pairs)
    numbers.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    write_results(size, out)


def described(earlier: Path, resume: bool) -> dict[str, str]:
    """This machine and its versions, beside those that an earlier run measured where it goes on."""
    now = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "processors": str(jobs.processors())}
    about = now | machine.describe()
    if resume and earlier.is_file():
        before = json.loads(earlier.read_text(encoding="utf-8"))
        for key in ("date", "mergeops", "mergekit"):
            known = before[key].split("; later ")
            about[key] = "; later ".join(dict.fromkeys([*known, about[key]]))
    return about


class Session:
    """Measurements of one size, written down one by one.

    Args:
        size: of ``SIZES``.
        folder: for checkpoints and merges.
        numbers: the file of the measurements.
        earlier: another checkout of mergeops, or none.
    """

    def __init__(self, size: str, folder: Path, numbers: Path, earlier: Path | None = None) -> None:
        self._checkouts = {"mergeops": jobs.REPOSITORY, jobs.AS_CALLED: jobs.REPOSITORY}
        self._contestants: tuple[str, ...] = jobs.MEASURED
        if earlier is not None:
            self._checkouts[jobs.EARLIER] = earlier.absolute()
            self._contestants = (*jobs.MEASURED, jobs.EARLIER)
        self._models = make_models(size, folder)
        self._work = folder / size / "work"
        self._work.mkdir(parents=True, exist_ok=True)
        self._numbers = numbers
        self._done = {(m.method, m.contestant, m.pair) for m in read_measurements(numbers)}

    def run(self, methods: Iterable[str], pairs: int) -> None:
        """Measure what is not measured yet; pairs of all methods take turns."""
        methods = list(methods)
        warm: set[str] = set()
        for pair in range(pairs):
            for method in methods:
                missing = [
                    contestant
                    for contestant in self._contestants
                    if (method, contestant, pair) not in self._done
                ]
                if missing and method not in warm:
                    # Brings libraries into the page cache; and ours hashes sources and compiles
                    # kernels, once for a machine.
                    ours = [name for name in self._checkouts if name != jobs.AS_CALLED]
                    for contestant in ours if warm else ["mergekit", *ours]:
                        self._once(method, contestant)
                    warm.add(method)
                for contestant in missing:
                    self._measure(method, contestant, pair)

    def _measure(self, method: str, contestant: str, pair: int) -> None:
        load = os.getloadavg()[0]
        wall, cpu, anonymous = self._once(method, contestant)
        found = Measurement(
            method, contestant, pair, round(wall, 3), round(cpu, 3), anonymous, round(load, 2)
        )
        with open(self._numbers, "a", encoding="utf-8") as file:
            file.write(json.dumps(found.to_dict()) + "\n")
        click.echo(
            f"{method:16} pair {pair + 1} {contestant:9} {wall:8.2f} s, processor {cpu:8.2f} s, "
            f"{anonymous / 1e6:7.0f} MB",
            err=True,
        )

    def _once(self, method: str, contestant: str) -> tuple[float, float, int]:
        out = self._work / "out"
        shutil.rmtree(out, ignore_errors=True)
        if contestant == "floor":
            out.mkdir()
        for file in jobs.inputs(method, self._models):
            _read(file)
        command = jobs.command(contestant, method, self._models, self._work, out)
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(self._checkouts.get(contestant, "")),
        }
        log = self._work / f"{contestant}.log"
        try:
            return measure(command, environment, self._work, log)
        finally:
            shutil.rmtree(out, ignore_errors=True)
            os.sync()


def read_measurements(numbers: Path) -> list[Measurement]:
    """All measurements of a file; none where there is none."""
    if not numbers.is_file():
        return []
    lines = numbers.read_text(encoding="utf-8").splitlines()
    return [Measurement(**json.loads(line)) for line in lines]


def write_results(size: str, out: Path) -> None:
    """The results and the plots, from the measurements of all machines, the last one first."""
    found = [
        (json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".jsonl"))
        for path in out.glob(f"results-{size}-*.json")
    ]
    found.sort(key=lambda pair: (pair[0]["date"], pair[1].name), reverse=True)
    sections = [section(size, about, numbers) for about, numbers in found]
    count = SIZES[size].parameters / 1e9
    text = f"""# Merging {count:.2f} B parameters: mergekit, mergeops, and the bytes alone

Measured with `make bench SIZE={size}`. Every time is that of a whole process, from its start to its
end, in seconds: median (smallest..largest). A ratio is taken pair by pair. Memory is the largest
RssAnon (no mapped files) of any run.

{chr(10).join(sections)}
## How it is measured

The checkpoints are generated (a base of the shape of Llama-3.2-1B for 1b, and
fine-tunes of it: the base plus normal changes of 3 % of its scale, rounded to bfloat16), and lie in
the page cache. All three do the same merge; mergekit and mergeops read the same YAML. mergekit runs
as `mergekit-yaml CONFIG OUT {" ".join(jobs.MERGEKIT_OPTIONS)}`,
with all processors. mergeops runs as
`mergeops merge CONFIG OUT {" ".join(jobs.MERGEOPS_OPTIONS)}`, which does mergekit's arithmetic also
where its own needs a pass less (the rescaling of DARE and DELLA); "as called" is without
that option. It also hashes what it writes and
waits for the disk (fsync), which mergekit does not. Both have run before, unmeasured (mergekit once
in all, mergeops once for each method): then the libraries are in the page cache, the sources'
digests known (mergeops hashes each file once) and its kernels compiled (once for a machine). The
floor reads the same inputs and writes as many bytes, with as many threads as there are processors,
and waits for the disk, too; it computes nothing, and has no libraries to load.

Measure again: `make bench` (`SIZE=1b|300m|tiny METHODS=ties,della PAIRS=5`); a cut run goes on with
`make bench RESUME=--resume`, and `EARLIER=CHECKOUT` measures another checkout of mergeops beside
this one, with the same options. Another machine adds a section.
"""
    place = out / ("RESULTS.md" if size == "1b" else f"RESULTS-{size}.md")
    place.write_text(text, encoding="utf-8")
    click.echo(f"wrote {place}", err=True)


def section(size: str, about: Mapping[str, str], numbers: Path) -> str:
    """The part of RESULTS.md about one machine; draws its plot.

    Args:
        size: of ``SIZES``.
        about: of ``machine.describe``, with the date and the number of processors.
        numbers: the file of its measurements.
    """
    measured = read_measurements(numbers)
    rows = table.rows(measured)
    if not rows:
        raise click.ClickException(f"{numbers.name}: no method has a pair of all three")
    count = SIZES[size].parameters / 1e9
    picture = numbers.with_suffix(".png")
    title = f"Merging {count:.2f} B parameters, bfloat16 ({about['processor']})"
    plot.draw(rows, title, picture)
    loads = [one.load for one in measured]
    busy, processors = "", int(about["processors"])
    # Two contestants before leave about as much as there are processors, and some more.
    if max(loads) > 2 * processors:
        busy = (
            f"**Other work kept the machine busy (load up to {max(loads):.0f} on "
            f"{processors} processors): times are those of a shared machine, and only the "
            "processor seconds and the memory say much.**\n\n"
        )
    shown = [key for key in about if key not in ("date", "processors")]
    facts = "\n".join(f"* {key}: {about[key]}" for key in shown)
    return f"""## {about["processor"]}

Measured {about["date"]}.

{busy}{table.markdown(rows)}

![The same as bars]({picture.name})

{facts}
* load average before the runs: {min(loads):.1f} to {max(loads):.1f}
* single measurements: `{numbers.name}`
"""


def _read(file: Path) -> None:
    buffer = bytearray(1 << 22)
    with open(file, "rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass


if __name__ == "__main__":
    bench()
