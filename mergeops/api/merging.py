"""The words about recipes and weights: merge, run, search, inspect, verify, recover, moe,
transplant and extract."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops import inspection, pipeline, workshop
from mergeops.api.recipes import ConfigDir, RecipeLike, as_recipe
from mergeops.checkpoint import verify_checkpoint
from mergeops.derived import extract_by_uri, mixture_of, transplant_by_uri
from mergeops.extraction import Extracted, Rank
from mergeops.mixture import Mixture
from mergeops.progress import Progress
from mergeops.recover import Recovered
from mergeops.recover import recover as put_together
from mergeops.search import SearchResult, run_search, with_strategy
from mergeops.sources import locate
from mergeops.tracking import Trial
from mergeops.transplant import Transplant


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found."""

    checkpoint: Path
    problems: tuple[str, ...]
    """One line a file that differs from the manifest; empty where all is well."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"checkpoint": str(self.checkpoint), "problems": list(self.problems)}


def merge(
    recipe: RecipeLike,
    out: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    config_dir: ConfigDir = None,
    progress: bool = False,
) -> workshop.Merged:
    """Merge into a directory; nothing is scored or tracked.

    Args:
        recipe: what to merge.
        out: a directory in Hugging Face layout is made there; it is new, or holds this very merge.
        overrides: e.g. ``["method=ties", "output.device=cpu"]``.
        config_dir: your own config directory.
        progress: show bars on stderr.

    Raises:
        ConfigError: the recipe is wrong.
        SourceError: an input is not there, not whole or no checkpoint.
        MergeError: the inputs do not fit each other, or the result cannot be written.

    >>> import mergeops
    >>> mergeops.merge(
    ...     {"sources": {"math": "models/math", "code": "models/code"}, "method": "linear"}, "mean"
    ... ).to_dict()["was_there"]
    False
    """
    composed = as_recipe(recipe, overrides, config_dir)
    return workshop.merge_only(composed, Path(out), Progress(quiet=not progress))


def run(
    recipe: RecipeLike,
    *,
    overrides: Sequence[str] = (),
    config_dir: ConfigDir = None,
    progress: bool = False,
) -> Trial:
    """Run one tracked trial: merge, score merge and parents, log, register.

    The same call again does nothing twice, and goes on where a killed one was.

    Args:
        recipe: what to merge, and with ``evaluate.tasks`` what to score it on.
        overrides: e.g. ``["tracking.uri=http://mlflow:5000", "evaluate.tasks=[arc_easy]"]``.
        config_dir: your own config directory.
        progress: show bars on stderr.

    Raises:
        MergeopsError: the class says at which step; finished steps are kept.

    >>> import mergeops
    >>> recipe = {"sources": {"math": "models/math", "code": "models/code"}}
    >>> overrides = ["tracking.heat_maps=false", "tracking.register=unscored"]
    >>> trial = mergeops.run(recipe, overrides=overrides)
    >>> trial.registered, trial.scores
    ('merged/1', None)
    """
    composed = as_recipe(recipe, overrides, config_dir)
    [trial] = pipeline.run_all([composed], Progress(quiet=not progress), name=composed.name or "")
    return trial


def search(
    recipe: RecipeLike,
    *,
    overrides: Sequence[str] = (),
    config_dir: ConfigDir = None,
    progress: bool = False,
) -> SearchResult:
    """Run many trials, and choose the best on the dev part.

    Args:
        recipe: its ``search.strategy`` proposes the trials, its ``evaluate.tasks`` score them.
        overrides: e.g. ``["strategy=grid", "search.grid={method.density: [0.2, 0.5]}"]``.
        config_dir: your own config directory.
        progress: show bars on stderr.

    Raises:
        ConfigError: an unknown strategy, or no tasks to choose by.
        MergeopsError: as ``run``.

    >>> import mergeops
    >>> mergeops.search({"sources": {"math": "models/math", "code": "models/code"}})
    Traceback (most recent call last):
    mergeops.errors.ConfigError: a search chooses by scores, but evaluate.tasks is empty; ...
    """
    composed = as_recipe(recipe, with_strategy(overrides), config_dir)
    return run_search(composed, Progress(quiet=not progress))


def inspect(
    recipe: RecipeLike,
    *,
    with_ranks: bool = True,
    overrides: Sequence[str] = (),
    config_dir: ConfigDir = None,
    progress: bool = False,
) -> inspection.Inspection:
    """Look at a recipe's sources: will they merge, and how do their task vectors interfere?

    Args:
        recipe: nothing of it is merged or logged.
        with_ranks: compute effective ranks too, which take most of the time.
        overrides: those of the command line.
        config_dir: your own config directory.
        progress: show bars on stderr.

    Raises:
        ConfigError: the recipe is wrong, has no sources, or makes merges first.
        SourceError: an input is not there, not whole or no checkpoint.

    >>> import mergeops
    >>> recipe = {"base": "models/base", "sources": {"math": "models/math", "code": "models/code"}}
    >>> mergeops.inspect(recipe, with_ranks=False).fit.refused is None
    True
    """
    bars = Progress(quiet=not progress)
    composed = as_recipe(recipe, overrides, config_dir)
    inspection.check_recipe(composed)
    resolved = workshop.Workshop(composed, bars).resolve(composed, measure=False)
    with bars.bar("comparing weights") as tick:
        return inspection.inspect(composed, resolved, with_ranks=with_ranks, progress=tick)


def verify(where: str | os.PathLike[str], *, progress: bool = False) -> Verification:
    """Rehash a merged checkpoint and name every file that differs from its manifest.

    Args:
        where: a directory, or a URI as a recipe may name.
        progress: show bars on stderr.

    Raises:
        SourceError: there is no merge.

    >>> import mergeops
    >>> mergeops.verify("out").to_dict()["problems"]
    []
    """
    bars = Progress(quiet=not progress)
    with bars.bar(f"fetching {where}", is_bytes=True) as tick:
        path = locate(os.fspath(where), progress=lambda _what, done, total: tick(done, total))
    with bars.bar(f"hashing {path.name}", is_bytes=True) as tick:
        return Verification(path, tuple(verify_checkpoint(path, tick)))


def recover(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    progress: bool = False,
) -> Recovered:
    """Put together the weights that a sharded training left, as a Hugging Face directory.

    Args:
        directory: a checkpoint of FSDP, DeepSpeed ZeRO, verl, torchtitan or NeMo Automodel.
        out: a new directory, or one that holds this very result.
        base: the model that was trained, as a directory or a URI that a recipe may name; names and
            shapes must be its.
        dry_run: check everything, write nothing.
        progress: show bars on stderr.

    Raises:
        SourceError: there is nothing of the kind, it is not whole, or it is not the base's.
        MergeError: the result cannot be written.

    >>> import mergeops
    >>> mergeops.recover("models/math", "recovered")
    Traceback (most recent call last):
    ...
    mergeops.errors.SourceError: models/math is a whole checkpoint already; use it as a source
    """
    bars = Progress(quiet=not progress)
    place = None
    if base is not None:
        with bars.bar(f"fetching {base}", is_bytes=True) as tick:
            place = locate(os.fspath(base), progress=lambda _what, done, total: tick(done, total))
    return put_together(Path(directory), Path(out), base=place, dry_run=dry_run, progress=bars)


def moe(
    recipe: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> Mixture:
    """Make dense models the experts of one, that routes each token to a few of them.

    Args:
        recipe: a YAML file of mergekit-moe.
        out: a new directory, or one that holds this very model.
        seed: of random gates.
        device: of the arithmetic, and of the base where hidden gates run it.
        progress: show bars on stderr.

    Raises:
        ConfigError: the file is wrong, or prompts make no gate.
        EvaluationError: the base cannot be run for hidden gates.
        SourceError: a model is not there, not whole or no checkpoint.
        MergeError: the models do not fit each other, or the result cannot be written.

    >>> import mergeops
    >>> mergeops.moe("moe.yml", "experts")
    Traceback (most recent call last):
    mergeops.errors.ConfigError: moe.yml cannot be read: No such file or directory
    """
    bars = Progress(quiet=not progress)
    return mixture_of(Path(recipe), Path(out), seed=seed, device=device, progress=bars).result


def transplant(
    model: str | os.PathLike[str],
    donor: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    method: str = "omp",
    k: int = 16,
    device: str = "auto",
    progress: bool = False,
) -> Transplant:
    """Write a model with the vocabulary and tokenizer of another.

    Args:
        model: gives the weights, a directory or a URI that a recipe may name.
        donor: gives the vocabulary.
        out: a new directory, or one that holds this very model.
        method: of tokens that the model lacks: ``omp``, sparse sums of those that both have, or
            ``mean``, the mean of the pieces that the model's tokenizer cuts them into.
        k: tokens in a sum.
        device: of the copying.
        progress: show bars on stderr.

    Raises:
        ConfigError: a method or number is out of range.
        SourceError: an input is not there, not whole or no checkpoint.
        MergeError: the vocabularies share too little, or the result cannot be written.

    >>> import mergeops
    >>> made = mergeops.transplant("models/math", "models/base", "moved")
    >>> made.new, mergeops.verify("moved").problems
    (0, ())
    """
    return transplant_by_uri(
        os.fspath(model),
        os.fspath(donor),
        Path(out),
        method=method,
        k=k,
        device=device,
        progress=Progress(quiet=not progress),
    ).result


def extract(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float = 0.95,
    max_rank: int = 256,
    others: str = "save",
    progress: bool = False,
) -> Extracted:
    """Make a LoRA adapter of a full fine-tune, and say what it leaves out.

    Args:
        base: the model that was fine-tuned, a directory or a URI that a recipe may name.
        tuned: the fine-tune, of the same shapes.
        out: a new directory, or one that holds this very adapter.
        rank: of every matrix; None takes as few directions in each as ``energy`` needs.
        energy: share of each change's squared length that is kept at least, without a rank.
        max_rank: what is taken at most, without a rank.
        others: changed norms, embeddings and heads: ``save`` keeps their modules whole,
            ``leave_out`` leaves them as the base's, ``refuse`` raises.
        progress: show bars on stderr.

    Raises:
        ConfigError: a number is out of range, or transformers does not know the model.
        SourceError: an input is not there, not whole or no checkpoint.
        MergeError: nothing changed, shapes differ, or the result cannot be written.

    >>> import mergeops
    >>> adapter = mergeops.extract("models/base", "models/math", "math-lora", rank=4)
    >>> {matrix.rank for matrix in adapter.matrices}
    {4}
    >>> mergeops.verify("math-lora").problems
    ()
    """
    return extract_by_uri(
        os.fspath(base),
        os.fspath(tuned),
        Path(out),
        rank=Rank.parse("auto" if rank is None else str(rank), energy=energy, most=max_rank),
        others=others,
        progress=Progress(quiet=not progress),
    ).result
