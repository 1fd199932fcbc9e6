"""The words about models in MLflow: adopt, compare, promote, rollback, lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergeops import adoption, promotion
from mergeops.api.recipes import ConfigDir, as_recipe
from mergeops.lineage import Member, find_family
from mergeops.progress import Progress
from mergeops.report import Compared
from mergeops.store import connect_to_server, current_user
from mergeops.tracking import compare_experiments


def adopt(
    experiment: str,
    *,
    filter_string: str | None = None,
    path_map: Mapping[str, str] | None = None,
    tracking_uri: str | None = None,
    register: str | None = None,
    dry_run: bool = False,
) -> adoption.Adoption:
    """Find the mergeable checkpoints of an MLflow experiment, whatever became of its runs.

    Args:
        experiment: the name of the experiment with the training runs.
        filter_string: MLflow's filter, e.g. ``metrics.eval_loss < 2``.
        path_map: moved storage, old prefix -> new prefix.
        tracking_uri: in place of MLFLOW_TRACKING_URI.
        register: also register each as a version of this model.
        dry_run: only look; write nothing to MLflow.

    Raises:
        TrackingError: MLflow cannot be reached, or there is no such experiment.

    >>> import mergeops
    >>> adopted = mergeops.adopt("finetunes", dry_run=True)
    >>> [(run["run_name"], run["status"], run["kind"]) for run in adopted.to_dict()["runs"]]
    [('math', 'FAILED', 'full')]
    """
    return adoption.adopt(
        experiment,
        filter_string=filter_string,
        path_map=path_map,
        tracking_uri=tracking_uri,
        register=register,
        dry_run=dry_run,
    )


def compare(
    *experiments: str,
    part: str = "dev",
    reference: str | None = None,
    overrides: Sequence[str] = (),
    config_dir: ConfigDir = None,
) -> Compared:
    """Rank the parents and merges of experiments, with paired differences.

    Args:
        experiments: their names; none takes ``tracking.experiment``.
        part: dev or confirm.
        reference: the name of the model to take differences from; None takes the best parent.
        overrides: those of the command line, e.g. ``["tracking.uri=http://mlflow:5000"]``.
        config_dir: your own config directory.

    Raises:
        TrackingError: there is no such experiment, or nothing was scored in any.
        EvaluationError: no model is called ``reference``.

    >>> import mergeops
    >>> mergeops.compare("mergeops")
    Traceback (most recent call last):
    mergeops.errors.TrackingError: experiment 'mergeops' has no scores on the dev part yet; ...
    """
    tracking = as_recipe(None, overrides, config_dir).tracking
    return compare_experiments(tracking, experiments, part, reference)


def promote(
    name: str | None = None,
    *,
    version: int | None = None,
    expect_current: int | None = None,
    force: bool = False,
    reason: str | None = None,
    overrides: Sequence[str] = (),
    config_dir: ConfigDir = None,
    progress: bool = False,
) -> promotion.Outcome:
    """Judge a registered merge on the confirm part; make it @champion if it is better.

    Args:
        name: the registered model; None takes ``tracking.registered_model``.
        version: the candidate; None takes the best on the dev part.
        expect_current: refuse unless this version is @champion now; 0: unless none is.
        force: promote against the gate; needs ``reason``.
        reason: why the gate is overruled; it is kept in the audit.
        overrides: those of the command line.
        config_dir: your own config directory.
        progress: show bars on stderr.

    Returns:
        The verdict and what came of it; ``raise_if_refused`` makes a refusal an error. Without a
        verdict where the version is @champion already.

    Raises:
        GateRefusedError: nothing was opened, since the candidate cannot pass.
        TrackingError: there is no such model or version, or another writer.

    >>> import mergeops
    >>> mergeops.promote("merged")
    Traceback (most recent call last):
    mergeops.errors.TrackingError: merged has no scored version to promote; ...
    """
    settings = as_recipe(None, overrides, config_dir)
    return promotion.promote(
        settings,
        name or settings.tracking.registered_model,
        Progress(quiet=not progress),
        version=version,
        expect_current=expect_current,
        force=force,
        reason=reason,
    )


def rollback(
    name: str | None = None,
    *,
    reason: str | None = None,
    expect_current: int | None = None,
    overrides: Sequence[str] = (),
    config_dir: ConfigDir = None,
) -> promotion.Change:
    """Move @champion back to @previous.

    Args:
        name: the registered model; None takes ``tracking.registered_model``.
        reason: kept in the audit.
        expect_current: refuse unless this version is @champion now.
        overrides: those of the command line.
        config_dir: your own config directory.

    Raises:
        TrackingError: there is no such model, no champion, another than expected, or no previous.

    >>> import mergeops
    >>> mergeops.rollback("merged")
    Traceback (most recent call last):
    mergeops.errors.TrackingError: merged has no @champion; promote a version first
    """
    settings = as_recipe(None, overrides, config_dir)
    model = name or settings.tracking.registered_model
    with promotion.registry(settings, model, Progress(quiet=True)) as tracking:
        return promotion.rollback(
            tracking,
            model,
            user=current_user(),
            reason=reason,
            expect_current=expect_current,
            hooks=promotion.configured(settings.promote.hooks),
        )


def lineage(model: str, *, overrides: Sequence[str] = (), config_dir: ConfigDir = None) -> Member:
    """Find the family tree of a model, back to its training runs and bases.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or runs:/ID.
        overrides: those of the command line.
        config_dir: your own config directory.

    Raises:
        TrackingError: MLflow does not know it.

    >>> import mergeops
    >>> merge = mergeops.lineage("models:/merged/1")
    >>> merge.kind, sorted(parent.name for parent in merge.parents)
    ('merge', ['code', 'math'])
    """
    return find_family(connect_to_server(as_recipe(None, overrides, config_dir).tracking), model)
