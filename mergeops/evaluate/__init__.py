"""Questions for lm-eval, and only those that were never asked before.

Stands on: checkpoint, errors, kernels, lazy_torch, progress, recipe, schema, scores.
"""

from mergeops.evaluate.agreements import Agreement, agreement
from mergeops.evaluate.harness import score_all
from mergeops.evaluate.items import (
    asked_digest,
    check_clusters,
    check_directions,
    part_digests,
    part_sizes,
    part_sketches,
    with_clusters,
)
from mergeops.evaluate.model import Model, load_model, load_tokenizer
from mergeops.evaluate.own_files import task_files
from mergeops.evaluate.seat import Pourable, Seat
from mergeops.evaluate.task_origins import TaskPlaces, task_places
from mergeops.evaluate.tasks import TaskSet, load_tasks
from mergeops.evaluate.text_files import read_passages
from mergeops.evaluate.workers import pick_devices

__all__ = [
    "Agreement",
    "Model",
    "Pourable",
    "Seat",
    "TaskPlaces",
    "TaskSet",
    "agreement",
    "asked_digest",
    "check_clusters",
    "check_directions",
    "load_model",
    "load_tasks",
    "load_tokenizer",
    "part_digests",
    "part_sizes",
    "part_sketches",
    "pick_devices",
    "read_passages",
    "score_all",
    "task_files",
    "task_places",
    "with_clusters",
]
