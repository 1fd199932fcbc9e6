"""Sources: from what a recipe names to a directory of bytes, pinned by hash.

``resolve`` is the way in. A ``Source`` is what everybody downstream works with: a local directory
in Hugging Face layout (or a LoRA adapter with the model it applies to), the digest of its
weights, and the MLflow run and model that it came from, where known. What a URI may be is said by
``schemes``, a registry of one file a kind:

    local        a path             runs             runs:/ID[/checkpoint-N]
    hub          hf://ORG/NAME      models           models:/NAME/VERSION, models:/NAME@ALIAS
                                    artifact_stores  s3://BUCKET/PATH and what else MLflow reads

``TrainingRuns`` and ``Search`` read what trainings left in MLflow, for runs:/ and for adoption.

Stands on: checkpoint, errors, recipe, recover, redact, store.
"""

from mergeops.sources.checkpoints import (
    CHECKPOINT_URI,
    EXTERNAL,
    CheckpointChoice,
    Search,
    eval_losses,
    is_finite,
)
from mergeops.sources.contents import Kind
from mergeops.sources.logged_config import OUTPUT_PARAMS, Said, config_artifacts, is_set
from mergeops.sources.remote.directory import LocalDirectory, moved, read_json
from mergeops.sources.resolution import locate, resolve, resolve_uri
from mergeops.sources.run_note import RunTags, cheap_sha256, write_note
from mergeops.sources.runs import no_checkpoint, written_by
from mergeops.sources.schemes import short_name
from mergeops.sources.source import Resolved, Source
from mergeops.sources.training_runs import TrainingRuns, open_store

__all__ = [
    "CHECKPOINT_URI",
    "EXTERNAL",
    "OUTPUT_PARAMS",
    "CheckpointChoice",
    "Kind",
    "LocalDirectory",
    "Resolved",
    "RunTags",
    "Said",
    "Search",
    "Source",
    "TrainingRuns",
    "cheap_sha256",
    "config_artifacts",
    "eval_losses",
    "is_finite",
    "is_set",
    "locate",
    "moved",
    "no_checkpoint",
    "open_store",
    "read_json",
    "resolve",
    "resolve_uri",
    "short_name",
    "write_note",
    "written_by",
]
