"""What one training run left that can be merged, whatever became of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergeops.adapters import AdapterConfig, checked
from mergeops.adoption import facts
from mergeops.checkpoint import ADAPTER_CONFIG, Quantisation
from mergeops.errors import SourceError
from mergeops.recover import open_on_base
from mergeops.sources import (
    CheckpointChoice,
    RunTags,
    Said,
    Search,
    TrainingRuns,
    no_checkpoint,
)

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run


@dataclass(frozen=True)
class FoundRun:
    """One run of the experiment and what it left."""

    run_id: str
    run_name: str
    status: str
    """FINISHED, FAILED, KILLED or RUNNING."""
    problem: str | None = None
    """Why it cannot be merged, and the way out; None where it can."""
    uri: str | None = None
    """What a recipe writes: runs:/ID/checkpoint-N."""
    checkpoint: str | None = None
    """Where the checkpoint is: a path, or a URI without credentials."""
    kind: str | None = None
    """full, or an adapter's kind by its own config: lora, dora, loha, ..."""
    sharded: str | None = None
    """What a sharded training left it as, and of how many processes; None where it is no pieces."""
    step: int | None = None
    """Optimiser step of the checkpoint."""
    checkpoints: tuple[str, ...] = ()
    """Names of all that lie beside it, newest first."""
    size_bytes: int = 0
    """Of its safetensors files; 0 where the store does not say."""
    base: str | None = None
    """The model that was fine-tuned: a directory, or a hub id, with @REVISION where it is known."""
    adapter_base: str | None = None
    """What an adapter itself calls its base."""
    base_sha256: str | None = None
    """Digest of the base's weights, where the run says it."""
    architectures: tuple[str, ...] = ()
    shape: Mapping[str, int] = field(default_factory=dict)
    """vocab_size, hidden_size, num_hidden_layers, ..."""
    quantisation: str | None = None
    """How the weights (of an adapter, its base's) are coded, e.g. gptq; None for plain numbers."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """eval_loss (at this checkpoint), eval_loss_best and eval_loss_last of the run, train loss."""
    not_finite: tuple[str, ...] = ()
    """Losses of the run that ended as no number."""
    model_id: str | None = None
    """The run's own LoggedModel of the checkpoint, where the trainer logged one."""
    found_by: Mapping[str, str] = field(default_factory=dict)
    """Fact -> where it was read."""
    skipped: tuple[str, ...] = ()
    """What is wrong with checkpoints that were passed over."""
    is_silent: bool = False
    """Whether it is RUNNING and has logged nothing for an hour: most likely it was killed."""

    def row(self) -> dict[str, Any]:
        """As JSON types, for a table or ``--json``."""
        row = dataclasses.asdict(self)
        for key in ("architectures", "skipped", "checkpoints", "not_finite"):
            row[key] = list(row[key])
        return row


def look_at(
    store: TrainingRuns, run: Run, models: Sequence[LoggedModel]
) -> tuple[FoundRun, CheckpointChoice | None]:
    """Find a run's best checkpoint and what is known of it.

    Args:
        models: LoggedModels that the run made.
    """
    known = FoundRun(
        run_id=run.info.run_id,
        run_name=str(run.info.run_name or run.info.run_id[:8]),
        status=str(run.info.status),
        is_silent=facts.is_silent(run),
        metrics=facts.metrics(run, None),
        not_finite=facts.not_finite(run),
        base_sha256=run.data.tags.get(RunTags.BASE_SHA256),
    )
    search = Search(store, run, models)
    try:
        choice = search.best()
        if choice is None:
            said = facts.logged(run)
            return dataclasses.replace(known, problem=no_checkpoint(search), **said), None
        return _describe(store, run, known, choice), choice
    except SourceError as error:
        return dataclasses.replace(known, problem=str(error)), None


def _describe(store: TrainingRuns, run: Run, known: FoundRun, choice: CheckpointChoice) -> FoundRun:
    candidate, directory = choice.candidate, choice.directory
    adapter, own = None, None
    if choice.kind != "full":
        adapter = checked(facts.beside(choice, ADAPTER_CONFIG), directory.shown)
        own = facts.adapted(choice, adapter)
    base = facts.base(store, run, choice, adapter)
    architecture = facts.architecture(run, choice, base)
    provenance = {
        "checkpoint": f"{candidate.found_by}; {choice.why}",
        "kind": "files" if adapter is None else ADAPTER_CONFIG,
    }
    if base is not None:
        provenance["base"] = base.found_by
    provenance["architectures"] = architecture.found_by
    quantised = architecture.quantisation
    return dataclasses.replace(
        known,
        problem=_why_not(choice, adapter, base, quantised) or _unfit_pieces(choice, base),
        uri=_uri(known.run_id, choice),
        checkpoint=directory.shown,
        kind="full" if adapter is None else adapter.kind,
        sharded=None if choice.pieces is None else choice.pieces.told,
        step=choice.step,
        checkpoints=choice.others,
        size_bytes=choice.location.contents.size_bytes,
        base=base.path if base else None,
        adapter_base=own.path if own else None,
        architectures=architecture.architectures,
        shape=architecture.shape,
        quantisation=quantised.scheme if quantised is not None else None,
        metrics=facts.metrics(run, choice),
        model_id=candidate.model_id,
        found_by=provenance,
        skipped=choice.skipped,
    )


def _why_not(
    choice: CheckpointChoice,
    adapter: AdapterConfig | None,
    base: Said | None,
    quantised: Quantisation | None,
) -> str | None:
    """Why a whole checkpoint cannot be merged exactly, and the way out; None where it can."""
    shown = choice.directory.shown
    if choice.location.contents.has_adapter:
        return (
            f"{shown} holds a full model and an adapter beside it, and only one of them can be "
            "meant; move the other out of the directory"
        )
    if adapter is not None and adapter.problem is not None:
        return f"{shown}: {adapter.problem}"
    if adapter is None or base is None or quantised is None or quantised.is_readable:
        return None
    return (
        f"{shown} is an adapter on {base.path}, which is quantised ({quantised.told}): set the "
        f"run's tag {RunTags.BASE} to the 16-bit model that it was made from"
    )


def _unfit_pieces(choice: CheckpointChoice, base: Said | None) -> str | None:
    """Why a full model in pieces cannot be merged; None where it can."""
    shown = choice.directory.shown
    if choice.pieces is None or choice.kind != "full":
        return None
    if base is None:
        return (
            f"{shown} holds what a sharded training left, {choice.pieces.told}, and nobody noted "
            f"which model was trained: set the run's tag {RunTags.BASE} to it"
        )
    here, trained = choice.directory.local, facts.here(base.path)
    if here is None or trained is None:
        return None
    try:
        # How large the whole of slices is stands in no file but the base's.
        open_on_base(here, trained)
    except SourceError as error:
        return str(error)
    return None


def _uri(run_id: str, choice: CheckpointChoice) -> str:
    """What a recipe writes. Several LoggedModels may have one name: the id tells them apart."""
    candidate = choice.candidate
    if choice.is_name_shared and candidate.model_id is not None:
        return f"models:/{candidate.model_id}"
    return "/".join([f"runs:/{run_id}", *([candidate.name] if candidate.name else [])])
