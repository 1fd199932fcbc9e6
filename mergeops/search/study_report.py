"""What a study found and what it cost, as JSON types and as a table."""

from __future__ import annotations

import dataclasses
from typing import Any

from mergeops.scores import compare, estimate
from mergeops.search.baselines import source_key
from mergeops.search.bench import Candidate
from mergeops.search.objectives import front, knee
from mergeops.search.proposal import Proposal
from mergeops.search.racing import Race, Stages
from mergeops.search.strategies import dev_columns
from mergeops.search.study import Study
from mergeops.tracking import Trial


def report(study: Study, trials: list[Trial], best_source: str) -> dict[str, Any]:
    """All of it.

    Args:
        study: that is done; at least one of its candidates is whole.
        trials: those that were kept.
        best_source: name of the best one.
    """
    best, race, cost = study.whole[0], study.bench.race, study.bench.cost
    return {
        "space": [
            dataclasses.asdict(axis) | {"methods": sorted(axis.methods or ())}
            for axis in study.space.axes
        ],
        "racing": {"shares": list(race.shares), "margin": race.margin, "alpha": race.alpha},
        "objectives": [objective.name for objective in race.objectives],
        "baselines": _baselines(study, best, best_source),
        "trials": [_trial(proposal, race) for proposal in study.proposals],
        **({"front": _front(study)} if len(race.objectives) > 1 else {}),
        "cost": {
            "answers": study.answers,
            "full_evaluations": round(study.answers / study.items, 2),
            "merge_seconds": round(cost.merge_seconds, 3),
            "evaluation_seconds": round(cost.evaluation_seconds, 3),
            "bytes_read": cost.bytes_read,
            "bytes_written": cost.bytes_written,
            "utilisation": study.utilisation,
        },
        "kept": [trial.to_dict() for trial in trials],
    }


def _baselines(study: Study, best: Candidate, best_source: str) -> dict[str, Any]:
    """Each with the difference of the best candidate to it, on the items that both were asked."""
    against: dict[str, Stages] = {"best_source": study.baselines.sources[source_key(best_source)]}
    for name, candidate in study.baselines.candidates.items():
        against[name.replace(" ", "_")] = candidate.stages
    found = {}
    for name, stages in against.items():
        share = max(stages)
        pair = compare(best.stages[share], stages[share])
        found[name] = {
            "dev": stages[share].pooled,
            "items": pair.n,
            "difference": pair.difference,
            "interval": [pair.low, pair.high],
            "beaten": pair.low > 0,
        }
    return found


def _trial(proposal: Proposal, race: Race) -> dict[str, Any]:
    candidate = proposal.candidate
    scores = candidate.scores if candidate else None
    each = {
        objective.name: objective.of(scores).pooled if scores else None
        for objective in race.objectives
    }
    limits = race.broken(candidate.stages) if candidate else []
    return {
        "number": proposal.number,
        "parameters": dict(proposal.values),
        "rung": proposal.rung(race),
        "answers": candidate.answers if candidate else 0,
        "score": scores.pooled if scores else None,
        "interval": dev_columns(scores)["dev_interval"],
        "state": proposal.state,
        "reason": proposal.why(),
        **({"objectives": each} if len(race.objectives) > 1 else {}),
        **({"broken": limits} if race.limits else {}),
    }


def _front(study: Study) -> dict[str, Any]:
    """The candidates that nobody beats in every objective, with intervals, and the knee."""
    race = study.bench.race
    values = {c.plan_digest: race.values_of(c.stages) for c in study.whole}
    leading = front(values)
    by_digest = {c.plan_digest: c for c in study.whole}
    rows = []
    for digest in leading:
        candidate = by_digest[digest]
        row: dict[str, Any] = {"candidate": candidate.label}
        for objective in race.objectives:
            own = estimate(objective.of(candidate.scores))
            row[objective.name] = {
                "score": own.value,
                "interval": list(own.interval) if own.interval else None,
            }
        rows.append(row)
    best = knee({digest: values[digest] for digest in leading})
    return {"knee": by_digest[best].label, "candidates": rows}


def table_of(rows: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """The trials with a column for each parameter, as a table in CSV takes them."""
    flat = []
    for row in rows:
        low, high = row["interval"] or (None, None)
        known = {k: row[k] for k in ("number", "state", "rung", "answers", "score")}
        parameters = {name: row["parameters"].get(name) for name in names}
        flat.append(known | {"low": low, "high": high} | parameters | {"reason": row["reason"]})
    return flat
