"""Tables in Markdown, and one figure, of what the results file has so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.study.cases import ALL, BASE, FEW, by_dev, mean
from benchmarks.study.figures import Row, Study, finding, transfer
from benchmarks.study.pictures import draw_differences
from benchmarks.study.questions import SKILLS
from benchmarks.study.results import Result, scores_of
from mergeops.scores import Simultaneous, estimate


def write_report(results: Iterable[Result], out: Path) -> None:
    """Write ``study_tables.md`` and ``study.png``; raises ValueError without the parents."""
    study = Study(results)
    if BASE not in study.parents:
        raise ValueError("the results have no parents yet")
    out.mkdir(parents=True, exist_ok=True)
    parts = [
        _parents(study),
        _methods(study, ALL, "Of all runs, failed ones included"),
        _methods(study, FEW, "Of the best run of each group"),
        _searches(study),
        _contributions(study),
        _windows(study),
        _diagnostics(study),
        _errors(study),
    ]
    (out / "study_tables.md").write_text("\n\n".join(filter(None, parts)) + "\n")
    draw_differences(study, out / "study.png")


def _parents(study: Study) -> str:
    ranked = [run.name for run in by_dev(study.results)]
    about = {run.name: run for run in by_dev(study.results)}
    rows = []
    for name in (BASE, *ranked):
        result = study.parents[name]
        own = [f"{result.held[skill].count('1') / len(result.held[skill]):.3f}" for skill in SKILLS]
        failure = about[name].failure if name in about else ""
        rows.append([name, failure, f"{mean(result.dev):.3f}", _held(result), *own])
    head = ["run", "failed on purpose", "dev", "held out", *SKILLS]
    return _table("The base and its runs", head, rows)


def _held(result: Result) -> str:
    skills = {skill: result.held[skill] for skill in SKILLS}
    own = estimate(scores_of(skills))
    low, high = own.interval or (0.0, 1.0)
    return f"{own.value:.3f} [{low:.3f}, {high:.3f}]"


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
        few = result.pool not in (ALL, FEW)
        moved = transfer(result, study.parents[BASE])
        lines.append(
            [
                f"`{result.name}`" + (f" ({result.pool})" if few else ""),
                f"{row.held:.3f}",
                *(f"{_difference(each)} {finding(each)}" for each in row.against.values()),
                _difference(moved) if moved else "-",
                f"{result.merge_cpu_s:.0f}",
                f"{result.bytes_read / 1e9:.2f} / {result.bytes_written / 1e9:.2f}",
            ]
        )
    head = ["method", "held out", *(f"against {name}" for name in rows[0].against)]
    head += ["transfer, against base", "merging, processor s", "GB read / written"]
    return _table(title, head, lines)


def _contributions(study: Study) -> str:
    gains = study.contributions()
    if not gains:
        return ""
    about = {run.name: run.failure for run in by_dev(study.results)}
    order = sorted(gains, key=lambda name: -gains[name].difference)
    rows = [[n, about[n], _difference(gains[n]), finding(gains[n])] for n in order]
    head = ["left out", "failed on purpose", "the soup gains by it", ""]
    return _table("What each run gives to the uniform soup of all", head, rows)


def _windows(study: Study) -> str:
    found = study.windows()
    if not found:
        return ""
    rows = [[r.pool, r.name, f"{mean(r.held):.3f}", _difference(d), finding(d)] for r, d in found]
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


def _difference(found: Simultaneous) -> str:
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"**{title}**", "", f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
