"""Scores onto runs and models, so that MLflow's Models tab is a leaderboard; and back again.

Each task is a dataset of its own (``arithmetic``, ``arithmetic (confirm)``), with the digest of its
questions, so models stand in one column only where they answered the same questions.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.errors import AwayError, TrackingError
from mergeops.report import Entry, Origin
from mergeops.scores import (
    CORPUS,
    MEAN,
    UNKNOWN,
    GroupRule,
    ItemResult,
    Scores,
    TaskScore,
    estimate,
    pooled_value,
)
from mergeops.store import (
    Tracking,
    hidden,
    hidden_facts,
    key,
    log_inputs,
    log_params,
    own_tags,
    tag_value,
)

if TYPE_CHECKING:
    from mlflow.entities import Metric

_DONE = "scores_sha256"
DIGEST_LIMIT = 12
"""MLflow would take 36, but shows them in full at the head of every column."""
ALL_TASKS = "all tasks"
ITEM_COLUMNS = (
    "task",
    "doc_id",
    "value",
    "doc_hash",
    "prompt_hash",
    "target_hash",
    "cluster",
    "weight",
)
TASK_FIELDS = (
    "metric",
    "value",
    "stderr",
    "n",
    "higher_is_better",
    "version",
    "digest",
    "kind",
    "by_log",
    "asked",
    "replicates",
    "chosen",
)
"""What the summary says of a task, in its order; ``n`` is for readers, the items are a file."""


@dataclass(frozen=True)
class BoardEntry:
    """One number on the leaderboard."""

    key: str
    value: float
    dataset: str
    digest: str


@dataclass(frozen=True)
class Scored(Entry):
    """A model of the experiment with its scores."""

    origin: Origin


def entries(scores: Scores) -> list[BoardEntry]:
    """Every number of ``scores`` as MLflow takes it, ``pooled`` and the ends of its 95 % interval
    first, in the order of a run's page; confirm keys begin with ``confirm/``."""
    prefix = "" if scores.part == "dev" else f"{scores.part}/"
    suffix = "" if scores.part == "dev" else f" ({scores.part})"
    # Two numbers over the same questions that are counted otherwise are not of one column.
    digests = sorted(task.digest for task in scores.tasks.values())
    digest = dataset_digest(*digests, "pooled", *scores.counted)
    everything = f"{ALL_TASKS}{suffix}"
    board = [BoardEntry(f"{prefix}pooled", scores.pooled, everything, digest)]
    for name, end in zip(("low", "high"), estimate(scores).interval or (), strict=False):
        board.append(BoardEntry(f"{prefix}pooled_{name}", end, everything, digest))
    for name, task in scores.tasks.items():
        digest = dataset_digest(*filter(None, (task.digest, task.chosen)))
        dataset = f"{name}{suffix}"
        metric = key(f"{prefix}{name}/{task.metric}")
        board.append(BoardEntry(metric, task.value, dataset, digest))
        if task.stderr is not None:
            board.append(BoardEntry(key(f"{metric}_stderr"), task.stderr, dataset, digest))
    for name, rule in scores.groups.items():
        members = {task: scores.tasks[task] for task in rule.tasks}
        chosen = [task.chosen for task in members.values() if task.chosen]
        digest = dataset_digest(*sorted(task.digest for task in members.values()), *chosen, name)
        metric = key(f"{prefix}{name}/{members[rule.tasks[0]].metric}")
        value = pooled_value(members, {name: rule})
        board.append(BoardEntry(metric, value, f"{name}{suffix}", digest))
    return board


def dataset_digest(*digests: str) -> str:
    """A short dataset digest, also of several digests together."""
    digest = "".join(digests)
    if len(digests) > 1:
        digest = hashlib.sha256(digest.encode()).hexdigest()
    return digest[:DIGEST_LIMIT]


def are_logged(tracking: Tracking, run_id: str, scores: Scores) -> bool:
    """Whether a run's scores on the part are these."""
    tags = own_tags(tracking.client.get_run(run_id).data.tags)
    return tags.get(f"mergeops.{_DONE}.{scores.part}") == _sha256(scores)


def log_scores(tracking: Tracking, run_id: str, model_id: str, scores: Scores) -> None:
    """Log metrics, datasets and items onto a run and its model; what is there already is kept.

    Numbers that are not finite would show as zeros in MLflow: they are named in a tag instead.
    """
    from mlflow.entities import Metric, RunTag

    client = tracking.client
    digest = _sha256(scores)
    run = client.get_run(run_id)
    if own_tags(run.data.tags).get(f"mergeops.{_DONE}.{scores.part}") == digest:
        return
    is_higher_better = any(task.higher_is_better for task in scores.tasks.values())
    numbers = entries(scores)
    finite = [entry for entry in numbers if math.isfinite(entry.value)]
    _log_datasets(tracking, run_id, scores)
    on_model = client.get_logged_model(model_id).metrics or []
    logged = {(m.key, m.dataset_digest, m.value) for m in on_model if m.run_id == run_id}
    now = int(time.time() * 1000)
    metrics: list[Metric] = [
        Metric(
            entry.key,
            entry.value,
            now,
            0,
            model_id=model_id,
            dataset_name=entry.dataset,
            dataset_digest=entry.digest,
            run_id=run_id,
        )
        for entry in finite
        # Scores on other questions may have come after them.
        if (entry.key, entry.digest, entry.value) not in logged
        or run.data.metrics.get(entry.key) != entry.value
    ]
    # log_batch, and not mlflow.log_metrics(model_id=): that would make a merge its own input.
    for start in range(0, len(metrics), 500):
        client.log_batch(run_id, metrics=metrics[start : start + 500])
    log_params(client, run_id, {"evaluate": scores.settings})
    _log_items(tracking, run_id, scores)
    facts = {
        f"questions.{scores.part}": numbers[0].digest,
        f"higher_is_better.{scores.part}": str(is_higher_better).lower(),
        f"{_DONE}.{scores.part}": digest,
    }
    tags = [RunTag(tag, value) for tag, value in hidden_facts(facts).items()]
    if len(finite) < len(numbers):
        lost = sorted(entry.key for entry in numbers if not math.isfinite(entry.value))
        tags.append(RunTag(f"mergeops.not_finite.{scores.part}", tag_value(", ".join(lost))))
    client.log_batch(run_id, tags=tags)


def read_scores(tracking: Tracking, run_id: str, part: str) -> Scores:
    """The scores that ``log_scores`` stored on a run.

    Raises:
        TrackingError: the run has none on this part, or its artifacts cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
        names = (f"scores/{part}.json", f"samples/{part}.csv")
        try:
            summary, samples = (
                Path(tracking.client.download_artifacts(run_id, name, folder)) for name in names
            )
        except AwayError:
            raise
        except TrackingError as error:
            raise TrackingError(
                f"{names[0]} or {names[1]} of run {run_id} is not in MLflow's artifact store any "
                f"more ({error}); bring it back, or delete the run and run its command again"
            ) from error
        try:
            raw = json.loads(summary.read_text(encoding="utf-8"))
            with samples.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            return _from_plain(raw, rows)
        except (ValueError, KeyError, TypeError) as error:
            raise TrackingError(
                f"the artifacts {names[0]} and {names[1]} of run {run_id} are not what mergeops "
                f"wrote ({error!r}); score the model again"
            ) from error


def scored_runs(
    tracking: Tracking,
    part: str = "dev",
    unreadable: Callable[[str, TrackingError], None] | None = None,
) -> list[Scored]:
    """Every parent and merge of the experiment that has scores on the part, oldest first.

    Args:
        unreadable: told the name and the error of a run whose scores are not there any more; None
            raises the error.
    """
    tag, finished = f"mergeops.{_DONE}.{part}", "attributes.status = 'FINISHED'"
    wanted = [f"tags.`{spelled}` != '' and {finished}" for spelled in (hidden(tag), tag)]
    scored = []
    for run in tracking.search_runs(*wanted):
        name = run.info.run_name or run.info.run_id
        try:
            scores = read_scores(tracking, run.info.run_id, part)
        except AwayError:
            raise
        except TrackingError as error:
            if unreadable is None:
                raise
            unreadable(name, error)
            continue
        tags = own_tags(run.data.tags)
        origin = Origin(
            experiment=tracking.spec.experiment,
            run_id=run.info.run_id,
            model_id=tags.get("mergeops.model_id"),
            weights_sha256=tags.get("mergeops.weights_sha256", ""),
            url=tracking.run_page(run.info.run_id),
        )
        scored.append(Scored(name, tags.get("mergeops.role", ""), scores, origin))
    return scored


def _log_datasets(tracking: Tracking, run_id: str, scores: Scores) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    sizes = {name: task.n for name, task in scores.tasks.items()}
    sizes |= {name: sum(sizes[task] for task in rule.tasks) for name, rule in scores.groups.items()}
    in_all = sum(task.n for task in scores.tasks.values())
    inputs = []
    for entry in {(e.dataset, e.digest): e for e in entries(scores)}.values():
        task = entry.dataset.removesuffix(f" ({scores.part})")
        n = sizes.get(task, in_all)
        source = {"harness": "lm-eval", "task": task, "part": scores.part}
        dataset = Dataset(
            name=entry.dataset[:500],
            digest=entry.digest,
            source_type="lm-eval",
            source=json.dumps(source),
            profile=json.dumps({"num_rows": n}),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", "eval")]))
    log_inputs(tracking.client, run_id, datasets=inputs)


def _log_items(tracking: Tracking, run_id: str, scores: Scores) -> None:
    with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
        summary = Path(folder) / "scores" / f"{scores.part}.json"
        samples = Path(folder) / "samples" / f"{scores.part}.csv"
        summary.parent.mkdir()
        samples.parent.mkdir()
        summary.write_text(json.dumps(_plain(scores), indent=2) + "\n", encoding="utf-8")
        with samples.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(ITEM_COLUMNS)
            for name, task in scores.tasks.items():
                for i in task.items:
                    value = "" if task.kind == CORPUS else repr(i.value)
                    hashes = (i.doc_hash, i.prompt_hash, i.target_hash)
                    writer.writerow((name, i.doc_id, value, *hashes, i.cluster, repr(i.weight)))
        tracking.client.log_artifacts(run_id, folder)


def _plain(scores: Scores) -> dict[str, Any]:
    return {
        "weights_sha256": scores.weights_sha256,
        "part": scores.part,
        "pooled": scores.pooled if math.isfinite(scores.pooled) else None,
        "settings": dict(scores.settings),
        "tasks": {
            name: {f: getattr(task, f) for f in TASK_FIELDS if f != "chosen" or task.chosen}
            for name, task in scores.tasks.items()
        },
        "groups": {name: dataclasses.asdict(rule) for name, rule in scores.groups.items()},
    }


def _from_plain(raw: dict[str, Any], rows: list[dict[str, str]]) -> Scores:
    items: dict[str, list[ItemResult]] = {name: [] for name in raw["tasks"]}
    for row in rows:
        numbers: dict[str, Any] = {"doc_id": int(row["doc_id"]), "value": float(row["value"] or 0)}
        if "weight" in row:
            numbers["weight"] = float(row["weight"])
        texts = {name: row[name] for name in ITEM_COLUMNS[1:] if name in row}
        items[row["task"]].append(ItemResult(**(texts | numbers)))
    tasks = {}
    for name, task in raw["tasks"].items():
        facts = {field: task[field] for field in TASK_FIELDS if field in task and field != "n"}
        facts["replicates"] = tuple(task.get("replicates", ()))
        if "kind" not in task:  # as logged before mergeops knew other kinds than means
            values = [item.value for item in items[name]]
            is_mean = values and math.isclose(sum(values) / len(values), task["value"])
            facts["kind"] = MEAN if is_mean else UNKNOWN
        tasks[name] = TaskScore(task=name, items=tuple(items[name]), **facts)
    groups = {
        name: GroupRule(tuple(rule["tasks"]), rule["by_size"])
        for name, rule in raw.get("groups", {}).items()
    }
    return Scores(raw["weights_sha256"], raw["part"], tasks, raw["settings"], groups)


def _sha256(scores: Scores) -> str:
    items = [
        [i.value, i.prompt_hash, i.weight, *([i.cluster] if i.cluster else [])]
        for task in scores.tasks.values()
        for i in task.items
    ]
    text = json.dumps([_plain(scores), items], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
