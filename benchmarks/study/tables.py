"""Tables in Markdown of what the results file has so far."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.study.cases import ALL, BASE, FEW, SOUND, by_dev, mean
from benchmarks.study.figures import SOUP, UNIFORM, Row, Study, finding, transfer
from benchmarks.study.questions import SKILLS, TRANSFER
from benchmarks.study.results import Result, scores_of
from mergeops.scores import Simultaneous, estimate

ASKED = (*SKILLS, TRANSFER)
"""What runs are asked on held-out items."""


def all_tables(study: Study) -> str:
    """Those that there is something for."""
    parts = [
        _parents(study),
        _methods(study, SOUND, "Methods with their defaults, of the runs not worse than the base"),
        _methods(study, FEW, "Methods with their defaults, of the best run of each group"),
        _methods(study, ALL, "Methods with their defaults, of all runs"),
        _searches(study),
        _contributions(study, SOUND, "What each run gives to the soup of the sound ones"),
        _contributions(study, ALL, "What each run gives to the soup of all"),
        _windows(study),
        _diagnostics(study),
        _errors(study),
    ]
    return "\n\n".join(filter(None, parts))


def difference_of(found: Simultaneous) -> str:
    """With its interval."""
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def held_of(result: Result, *tasks: str) -> str:
    """Share of right answers on held-out items, with its interval."""
    own = estimate(scores_of({task: result.held[task] for task in tasks}))
    low, high = own.interval or (0.0, 1.0)
    return f"{own.value:.3f} [{low:.3f}, {high:.3f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _parents(study: Study) -> str:
    ranked = [run.name for run in by_dev(study.results)]
    about = {run.name: run for run in by_dev(study.results)}
    rows = []
    for name in (BASE, *ranked):
        result = study.parents[name]
        shares = [(result.held[task].count("1"), len(result.held[task])) for task in ASKED]
        own = [f"{right / items:.2f}" for right, items in shares]
        failure = about[name].failure if name in about else ""
        rows.append([name, failure, f"{mean(result.dev):.3f}", held_of(result, *SKILLS), *own])
    head = ["run", "failed on purpose", "dev", "held out", *ASKED]
    return _table("The base and its runs", head, rows)


def _methods(study: Study, pool: str, title: str) -> str:
    rows = study.methods(pool)
    return _comparison(study, rows, title) if rows else ""


def _searches(study: Study) -> str:
    rows = study.searches()
    return (
        _comparison(study, rows, "Searched on dev, of the best run of each group") if rows else ""
    )


def _comparison(study: Study, rows: Sequence[Row], title: str) -> str:
    lines = []
    for row in rows:
        result = row.result
        few = result.pool not in (ALL, FEW, SOUND)
        moved = transfer(result, study.parents[BASE])
        lines.append(
            [
                f"`{result.name}`" + (f" ({result.pool})" if few else ""),
                f"{row.held:.3f}",
                *(_against(row, reference) for reference in row.against),
                difference_of(moved) if moved else "-",
                f"{result.merge_cpu_s:.0f}",
                f"{result.bytes_read / 1e9:.2f} / {result.bytes_written / 1e9:.2f}",
            ]
        )
    head = ["method", "held out", *(f"against {name}" for name in rows[0].against)]
    head += ["transfer, against base", "merging, processor s", "GB read / written"]
    return _table(title, head, lines)


def _against(row: Row, reference: str) -> str:
    if reference == UNIFORM and row.result.name == SOUP:
        return "the soup itself"
    found = row.against[reference]
    return f"{difference_of(found)} {finding(found)}"


def _contributions(study: Study, pool: str, title: str) -> str:
    gains = study.contributions(pool)
    if not gains:
        return ""
    about = {run.name: run.failure for run in by_dev(study.results)}
    order = sorted(gains, key=lambda name: -gains[name].difference)
    rows = [[n, about[n], difference_of(gains[n]), finding(gains[n])] for n in order]
    head = ["left out", "failed on purpose", "the soup gains by it", ""]
    return _table(title, head, rows)


def _windows(study: Study) -> str:
    found = study.windows()
    if not found:
        return ""
    rows = [[r.pool, r.name, f"{mean(r.held):.3f}", difference_of(d), finding(d)] for r, d in found]
    head = ["run", "mean of", "held out", "against the last checkpoint", ""]
    return _table("Windows of checkpoints", head, rows)


def _diagnostics(study: Study) -> str:
    found = study.diagnostics()
    if not found:
        return ""
    rows = [[name, f"{r:+.2f} [{low:+.2f}, {high:+.2f}]"] for name, (r, low, high) in found.items()]
    head = ["`mergeops inspect`", "rank correlation with what the run gives to the soup"]
    return _table("What told so beforehand", head, rows)


def _errors(study: Study) -> str:
    rows = [[r.kind, r.name, r.pool, r.error] for r in study.results if r.error]
    return _table("What could not be made", ["kind", "name", "pool", "why"], rows) if rows else ""


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"### {title}\n\n{table(head, rows)}"
