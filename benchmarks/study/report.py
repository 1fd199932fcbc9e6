"""docs/study.md and its figure, of what the results file has so far: the answers come first."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.cases import (
    ALL,
    BASE,
    FEW,
    LEFT_OUT,
    SOUND,
    best_of_groups,
    by_dev,
    mean,
    not_worse,
    planned_kinds,
)
from benchmarks.study.figures import (
    BEST,
    GAINS,
    LOSES,
    NOT_SHOWN,
    SOUP,
    UNIFORM,
    Row,
    Study,
    finding,
)
from benchmarks.study.pictures import draw_differences
from benchmarks.study.plan import RUNS
from benchmarks.study.questions import SKILLS, TRANSFER
from benchmarks.study.results import Result
from benchmarks.study.tables import all_tables, difference_of, held_of
from mergeops.methods import names
from mergeops.scores import Simultaneous

LINE = 118
"""Characters of a line of prose."""
DOCUMENT, PICTURE = "study.md", "study.png"
POOLS = {
    SOUND: "the runs that dev does not show to be worse than the base",
    FEW: "the best run of each group",
    ALL: f"all {len(RUNS)} runs",
}


def write_report(results: Iterable[Result], sizes: Mapping[str, Any], out: Path) -> None:
    """Write the document and the figure.

    Args:
        results: as far as the study got.
        sizes: steps, batch and items, as they were asked for.
        out: made where it is missing.

    Raises:
        ValueError: the results lack the base or a run.
    """
    study = Study(results)
    if missing := {BASE, *(run.name for run in RUNS)} - study.parents.keys():
        raise ValueError(f"the results have no {', '.join(sorted(missing))} yet")
    out.mkdir(parents=True, exist_ok=True)
    (out / DOCUMENT).write_text(document(study, sizes), encoding="utf-8")
    draw_differences(study, out / PICTURE)


def document(study: Study, sizes: Mapping[str, Any]) -> str:
    """The whole text."""
    parts = [
        "# What merging did on real fine-tunes",
        _answers(study),
        f"![Differences with intervals]({PICTURE})",
        "## What was run",
        _what_ran(study, sizes),
        "## What was not run, and what it would take",
        _what_is_left(study),
        "## How to read it",
        READING,
        "## Tables",
        all_tables(study),
    ]
    blocks = "\n\n".join(parts).split("\n\n")
    return "\n\n".join(map(_wrapped, blocks)) + "\n"


def _wrapped(block: str) -> str:
    """A paragraph as lines of one length; what is none stays as it is."""
    if block.startswith(("#", "!", "|", "- ", "    ")):
        return block
    return textwrap.fill(block, LINE, break_long_words=False, break_on_hyphens=False)


def _answers(study: Study) -> str:
    best = study.best_run
    base = study.parents[BASE]
    return "\n\n".join(
        [
            f"The best single run by dev is `{best.name}`: {held_of(best, *SKILLS)} of the "
            f"held-out items, where the base has {held_of(base, *SKILLS)}. Differences below are "
            "on those items, with 95 % intervals that hold for all rows of a table together (of "
            "windows: for those of one run).",
            f"**What gains over the best single run?** {_verdicts(study, BEST)}",
            f"**What gains over the uniform soup?** {_verdicts(study, UNIFORM)}",
            f"**What do failed runs give?** {_failed(study)}",
            f"**Does a mean over checkpoints of one run help?** {_windows(study)}",
            f"**What of `mergeops inspect` told so beforehand?** {_told(study)}",
            f"**Does a search on dev gain over the defaults?** {_searched(study)}",
        ]
    )


def _verdicts(study: Study, reference: str) -> str:
    said = []
    for pool, words in POOLS.items():
        rows = [
            row
            for row in study.methods(pool)
            if reference in row.against and not (reference == UNIFORM and row.result.name == SOUP)
        ]
        if not rows:
            said.append(f"Of {words}: not run yet.")
            continue
        by = {
            word: [row for row in rows if finding(row.against[reference]) == word] for word in WORDS
        }
        parts = [f"gains: {_named(by[GAINS], reference) or 'none is shown'}"]
        if by[LOSES]:
            parts.append(f"loses: {_named(by[LOSES], reference)}")
        if by[NOT_SHOWN]:
            parts.append(f"neither is shown: {_named(by[NOT_SHOWN], reference)}")
        said.append(f"Of {words}, {'; '.join(parts)}.")
    return " ".join(said)


WORDS = (GAINS, LOSES, NOT_SHOWN)
MOST_NAMED = 3
NOT_YET = "Not run yet."


def _named(rows: Sequence[Row], reference: str) -> str:
    """The first with their intervals, the others by name."""
    first = [f"`{r.result.name}` {difference_of(r.against[reference])}" for r in rows[:MOST_NAMED]]
    others = [f"`{r.result.name}`" for r in rows[MOST_NAMED:]]
    return ", ".join([*first, *others])


def _failed(study: Study) -> str:
    said = []
    for pool in (SOUND, ALL):
        gains = study.contributions(pool)
        failed = {run.name: run.failure for run in RUNS if run.name in gains and run.failure}
        each = [
            f"`{name}` ({failure}) {difference_of(gains[name])}, {_gives(gains[name])}"
            for name, failure in failed.items()
        ]
        if each:
            said.append(f"To the uniform soup of {POOLS[pool]}: {'; '.join(each)}.")
            said += _below_base(study, pool)
    return " ".join(
        ["The soup with a run minus the soup without it.", *said] if said else [NOT_YET]
    )


def _below_base(study: Study, pool: str) -> list[str]:
    soup, base = study.soup(pool), mean(study.parents[BASE].held)
    if soup is None or mean(soup.held) >= base:
        return []
    return [
        f"That soup ({mean(soup.held):.3f}) is below the base ({base:.3f}): what helps it may only "
        "thin out what harms it."
    ]


def _gives(found: Simultaneous) -> str:
    words = {GAINS: "it helps", LOSES: "it harms", NOT_SHOWN: "not shown to help or to harm"}
    return words[finding(found)]


def _windows(study: Study) -> str:
    found = study.windows()
    if not found:
        return NOT_YET
    said = [f"{r.name} of `{r.pool}` {difference_of(d)}, {finding(d)}" for r, d in found]
    return f"Against the last checkpoint: {'; '.join(said)}."


def _told(study: Study) -> str:
    found = study.diagnostics()
    if not found:
        return "Not run yet: it takes what every run gives to the soup."
    said = []
    for name, (value, low, high) in found.items():
        word = "told" if low > 0 or high < 0 else "not shown"
        said.append(f"{name} {value:+.2f} [{low:+.2f}, {high:+.2f}], {word}")
    return f"Rank correlation with what a run gives to the soup: {'; '.join(said)}."


def _searched(study: Study) -> str:
    rows = study.searches()
    if not rows:
        return NOT_YET
    defaults = {r.name: r for r in study.defaults(FEW)}
    said = []
    for row in rows:
        default = defaults.get(row.result.name)
        beside = f", by its defaults {mean(default.held):.3f}" if default else ""
        against = difference_of(row.against[BEST])
        said.append(f"`{row.result.name}` {row.held:.3f}{beside}, {against} to the best run")
    return f"{'; '.join(said)}."


def _what_ran(study: Study, sizes: Mapping[str, Any]) -> str:
    base = study.parents[BASE]
    dev = sum(len(base.dev[skill]) for skill in SKILLS)
    held = ", ".join(f"{len(base.held[task])} {task}" for task in (*SKILLS, TRANSFER))
    failed = sum(bool(run.failure) for run in RUNS)
    made = [r for r in study.results if r.merge_cpu_s and not r.error and r.kind != "inspect"]
    cpu = sum(r.merge_cpu_s + r.score_cpu_s for r in study.results)
    sound = [run.name for run in not_worse(study.results)]
    out = [run.name for run in RUNS if run.name not in sound]
    few = [run.name for run in best_of_groups(by_dev(study.results))]
    return (
        f"SmolLM2-135M-Instruct, {len(RUNS)} fine-tunes of all its weights ({failed} failed on "
        f"purpose), {sizes['steps']} steps of {sizes['batch']} questions each where a run goes to "
        f"its end, saved in bfloat16. {dev} dev items, by which choices are made; held out "
        f"{held}. {len(made)} merges were judged; merging and scoring took {cpu / 60:.0f} minutes "
        "of a processor.\n\n"
        "- commonsense: the text of the answer (CommonsenseQA)\n"
        "- calculation: the result of a step of a worked answer, among results near to it (GSM8K)\n"
        "- operation: the sign of the first step of a short problem, among four (GSM8K)\n"
        f"- {TRANSFER}: the answer that goes with a concept (CommonsenseQA); no run is trained on "
        "it\n\n"
        "Runs learn from the files of training questions, tasks ask from those of test questions."
        f"\n\nPools of sources: all runs; the {len(sound)} that dev does not show to be worse than "
        f"the base, which leaves out {_listed(out)}; and the best of each group by dev, "
        f"{_listed(few)}. {WHY_SOUND}"
    )


WHY_SOUND = (
    "The second pool was added after the first three merges of all runs had come out far below the "
    "base on held-out items; its rule looks at dev alone."
)


def _listed(runs: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in runs)


def _what_is_left(study: Study) -> str:
    done = {kind: [r for r in study.results if r.kind == kind] for kind in planned_kinds()}
    said = []
    for kind, (count, words) in planned_kinds().items():
        left = count - len(done[kind])
        if left > 0:
            spent = [r.merge_cpu_s + r.score_cpu_s for r in done[kind] if not r.error]
            ahead = left * sum(spent) / max(len(spent), 1) / 60
            cost = f", about {ahead:.0f} minutes of a processor" if spent else ""
            said.append(f"- {left} of {count} {words}{cost}")
    judged = {r.name for r in done["default"]}
    if never := [name for name in names() if name not in judged and name not in LEFT_OUT]:
        said.append(f"- of no pool yet: {_listed(never)}")
    left_out = [f"- `{name}`: {why}" for name, why in LEFT_OUT.items()]
    return "\n".join([*said, *left_out])


READING = (
    "*Dev* is for choosing: the best single run, the best of each group, and what a search finds. "
    "*Held out* is mergeops' confirm part of the same tasks, which no choice has seen, all items "
    "weighing the same. An interval that holds zero shows nothing, and the table says so; with "
    "some hundred items, differences of a few points cannot be told. Intervals are a max-T "
    "bootstrap over the items, drawn alike for all rows of a table. Methods that decompose "
    "matrices or read prompts take minutes of 16 sources, so they are judged on the best run of "
    "each group, beside three others on the same runs; those that take one source or two get the "
    "best by dev. Processor seconds are of all threads, on a machine that was shared: they rank "
    "methods, no more. One seed each: another draw of fine-tunes would move what is near zero.\n\n"
    "    python -m benchmarks.study run DIR --data COMMONSENSE_QA --data GSM8K\n"
    "    python -m benchmarks.study report DIR --out docs\n\n"
    "The first goes on where it was, wherever it was killed."
)
