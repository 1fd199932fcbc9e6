"""Sources: from what a recipe names to a directory of bytes, pinned by hash.

``resolve`` is the way in. A ``Source`` is what everybody downstream works with: a local directory
in Hugging Face layout (or a LoRA adapter with the model it applies to), the digest of its
weights, and the MLflow run and model that it came from, where known. What a URI may be is said by
``schemes``, a registry of one file a kind:

    local        a path             runs             runs:/ID[/checkpoint-N]
    hub          hf://ORG/NAME      models           models:/NAME/VERSION, models:/NAME@ALIAS
                                    artifact_stores  s3://BUCKET/PATH and what else MLflow reads

``TrainingRuns`` and ``Search`` read what trainings left in MLflow, for runs:/ and for adoption.

Stands on: adapters, architectures, checkpoint, errors, progress, recipe, recover, redact,
schema, store.
"""

from mergeops.sources.checkpoint_choice import CheckpointChoice
from mergeops.sources.checkpoints import CHECKPOINT_URI, EXTERNAL, Search
from mergeops.sources.contents import Kind
from mergeops.sources.fingerprint import TRAINER_STATE, is_finite, logged_values
from mergeops.sources.hub import cached, commit_of, is_hub_name, pinned_name, snapshot_name
from mergeops.sources.logged_config import Said, config_artifacts, is_set
from mergeops.sources.remote.directory import LocalDirectory, moved, read_json
from mergeops.sources.resolution import locate, resolve, resolve_uri
from mergeops.sources.resolution_bar import resolve_with_bar
from mergeops.sources.run_note import RunTags, cheap_sha256, write_note
from mergeops.sources.runs import no_checkpoint
from mergeops.sources.schemes import local_path, short_name
from mergeops.sources.source import Resolved, Source
from mergeops.sources.training_runs import TrainingRuns, open_store

__all__ = [
    "CHECKPOINT_URI",
    "EXTERNAL",
    "TRAINER_STATE",
    "CheckpointChoice",
    "Kind",
    "LocalDirectory",
    "Resolved",
    "RunTags",
    "Said",
    "Search",
    "Source",
    "TrainingRuns",
    "cached",
    "cheap_sha256",
    "commit_of",
    "config_artifacts",
    "is_finite",
    "is_hub_name",
    "is_set",
    "local_path",
    "locate",
    "logged_values",
    "moved",
    "no_checkpoint",
    "open_store",
    "pinned_name",
    "read_json",
    "resolve",
    "resolve_uri",
    "resolve_with_bar",
    "short_name",
    "snapshot_name",
    "write_note",
]
