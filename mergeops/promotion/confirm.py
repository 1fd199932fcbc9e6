"""The final comparison: open the confirm part for one candidate, judge it, and move @champion.

The candidate is chosen by its dev score alone. What the confirm part can show is said first, and
the use is counted, which sets the level of the test. Only then are the candidate and its references
scored on the confirm part, and the gate decides.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mergeops.checkpoint import hold, read_manifest
from mergeops.errors import AwayError, EvaluationError, GateRefusedError, TrackingError
from mergeops.evaluate import asked_digest, part_digests, part_sizes, part_sketches
from mergeops.pipeline import result_of
from mergeops.progress import Progress
from mergeops.promotion.audit import now
from mergeops.promotion.candidates import RegisteredMerge, candidates, choose
from mergeops.promotion.champion import (
    NO_CHAMPION,
    check_current,
    check_force,
    find_champion,
    made_champion,
    make_champion,
    rolled_back,
)
from mergeops.promotion.changes import complete
from mergeops.promotion.expectation import Expectation, expect
from mergeops.promotion.gate import check_tasks, judge, nothing_to_compare
from mergeops.promotion.hooks import configured, deliver
from mergeops.promotion.outcome import Outcome, evidence
from mergeops.promotion.references import Reference, find_references
from mergeops.promotion.uses import Use, count_use, next_use
from mergeops.recipe import Recipe
from mergeops.scores import Scores, pooled_score
from mergeops.store import Tracking, check_may_promote, connect, current_user
from mergeops.tools import Tools
from mergeops.tracking import read_recipe, read_scores, reopen


def promote(
    settings: Recipe,
    name: str,
    progress: Progress,
    *,
    version: int | None = None,
    expect_current: int | None = None,
    force: bool = False,
    reason: str | None = None,
    user: str | None = None,
) -> Outcome:
    """Judge a registered merge on the confirm part, and make it @champion if the gate holds.

    Args:
        settings: its tracking, promote and output settings hold; what is scored comes from the
            candidate's own recipe.
        name: the registered model.
        version: None takes the best on the dev part.
        expect_current: refuse unless this version is @champion (NO_CHAMPION: none is). The champion
            that the candidate was judged against must be @champion still in any case.
        user: who promotes; None: whoever MLflow or the system says. A service names itself.

    Returns:
        What came of it. Where the candidate is @champion already, nothing is opened: the same
        command again, after it succeeded or was killed, says that it is done.

    Raises:
        GateRefusedError: nothing is opened, since the candidate was rolled back and is not named by
            ``version``, or cannot pass the gate whatever it scores.
        TrackingError: no such model or version, no candidate with scores, or another writer.
    """
    check_force(force, reason)
    hooks = configured(settings.promote.hooks)
    tracking = connect(settings.tracking)
    candidate = choose(tracking, name, version)
    check_may_promote(tracking, name)
    was_cut_off = complete(tracking, name)
    champion = find_champion(tracking, name)
    if was_cut_off or candidate.version == champion:
        # A command that was killed may not have run the hooks.
        _run_hooks(tracking, name, settings, progress)
    if candidate.version == champion:
        made = made_champion(tracking, name, champion)
        if made is None or expect_current != (made.came_from or NO_CHAMPION):
            check_current(name, champion, expect_current)
        return Outcome(name, champion, None, None, (), made, None)
    check_current(name, champion, expect_current)
    if version is None:
        _check_not_rolled_back(tracking, name, candidate)
    recipe = recipe_of(tracking, settings, candidate)
    tools = Tools(recipe, progress, tracking=tracking)
    guard = _guard_tools(recipe, tools)
    references = find_references(tools, recipe, name, champion)
    if not force:
        _check_possible(recipe, candidate, references)
    user = user or current_user()
    use, expectations = _open(tools, recipe, name, candidate, references, user)
    scores = _score(tools, guard, recipe, name, candidate)
    against = {r.label: _score_reference(tools, guard, recipe, r) for r in references}
    verdict = judge(scores, against, recipe.promote, level=use.level)
    trial = reopen(tracking, candidate.run_id)
    own = {k: v for k, v in scores.tasks.items() if k not in recipe.promote.bits_per_byte}
    trial.log_scores(dataclasses.replace(scores, tasks=own))
    trial.log_text(verdict.markdown(), "gate.md")
    refusal, change = None, None
    try:
        change = make_champion(
            tracking,
            name,
            candidate.version,
            evidence(verdict, use, expectations),
            passed=verdict.promotes,
            user=user,
            expect_current=champion or NO_CHAMPION,
            force=force,
            reason=reason,
            approval=recipe.promote.approval,
            hooks=hooks,
        )
    except GateRefusedError as error:
        refusal = error
    _run_hooks(tracking, name, settings, progress)
    links = tracking.links(candidate.run_id, name, candidate.version)
    return Outcome(name, candidate.version, verdict, use, expectations, change, refusal, links)


def _run_hooks(tracking: Tracking, name: str, settings: Recipe, progress: Progress) -> None:
    for failure in deliver(tracking, name, settings.promote.hooks):
        progress.step(f"note: {failure}")


def _check_not_rolled_back(tracking: Tracking, name: str, candidate: RegisteredMerge) -> None:
    undone = rolled_back(tracking, name, candidate.version)
    if undone is not None:
        reason = f": {undone.reason}" if undone.reason else ""
        raise GateRefusedError(
            f"version {candidate.version} of {name}, the best on dev, was rolled back by "
            f"{undone.by}{reason}; judge it again by --version {candidate.version}, or name another"
        )


def _check_possible(
    recipe: Recipe, candidate: RegisteredMerge, references: list[Reference]
) -> None:
    if not references:
        raise GateRefusedError(nothing_to_compare(recipe.promote))
    for reference in references:
        if reference.source.sha256 == candidate.weights_sha256:
            raise GateRefusedError(
                f"version {candidate.version} is {reference.label}: the same weights, so it cannot "
                "be better; nothing was opened"
            )


def recipe_of(tracking: Tracking, settings: Recipe, candidate: RegisteredMerge) -> Recipe:
    """The candidate's own recipe, with where and how to work from ``settings``.

    Raises:
        EvaluationError: it names no tasks; ``settings`` names other clusters, which would split the
            items otherwise than when the candidate was chosen.
    """
    logged = Recipe.from_dict(read_recipe(tracking, candidate.run_id))
    if not logged.evaluate.tasks:
        raise EvaluationError(
            f"version {candidate.version} was merged without evaluate.tasks, so there is nothing "
            "to judge it by; run its recipe again with evaluate.tasks=[...]"
        )
    for task, shared in settings.evaluate.clusters.items():
        if logged.evaluate.clusters.get(task) != shared:
            raise EvaluationError(
                f"evaluate.clusters.{task} is {shared!r}, but version {candidate.version} was "
                f"chosen with {logged.evaluate.clusters.get(task) or 'no clusters'}: that decides "
                "which items are dev and which confirm; run its recipe again with it"
            )
    return dataclasses.replace(
        logged,
        promote=settings.promote,
        tracking=settings.tracking,
        output=settings.output,
        path_map={**logged.path_map, **settings.path_map},
        evaluate=dataclasses.replace(
            logged.evaluate,
            batch_size=settings.evaluate.batch_size,
            device=settings.evaluate.device,
        ),
    )


def _guard_tools(recipe: Recipe, tools: Tools) -> Tools | None:
    """For the tasks of ``promote.bits_per_byte``, loaded and checked before anything is scored."""
    loaded = tools.load_tasks()
    assert loaded is not None, "a recipe without tasks was refused"
    check_tasks(recipe.promote, loaded.tasks)
    guards = tuple(recipe.promote.bits_per_byte)
    if not guards:
        return None
    if twice := sorted(set(guards) & set(loaded.tasks)):
        raise EvaluationError(
            f"task {twice[0]} is in evaluate.tasks and in promote.bits_per_byte; name it in one"
        )
    only = dataclasses.replace(
        recipe.evaluate,
        tasks=guards,
        metrics=dict.fromkeys(guards, "bits_per_byte"),
        higher_is_better={},
        num_fewshot=None,
        clusters={},
    )
    recipe = dataclasses.replace(recipe, evaluate=only)
    guard = Tools(recipe, tools.progress, tracking=tools.tracking)
    guard.load_tasks()
    return guard


def _open(
    tools: Tools,
    recipe: Recipe,
    name: str,
    candidate: RegisteredMerge,
    references: list[Reference],
    user: str,
) -> tuple[Use, tuple[Expectation, ...]]:
    """Say what the confirm part can show, then count its use."""
    loaded = tools.load_tasks()
    assert loaded is not None, "a recipe without tasks was refused"
    spec = recipe.promote
    parts, sketches = part_digests(loaded, "confirm"), part_sketches(loaded, "confirm")
    primary = spec.primary or tuple(loaded.tasks)
    use = Use(
        version=candidate.version,
        weights_sha256=candidate.weights_sha256,
        references={r.label: r.source.sha256 for r in references},
        primary=primary,
        parts=parts,
        at=now(),
        by=user,
        alpha=spec.alpha,
        asked=asked_digest(loaded, "confirm"),
        sketches={parts[task]: sketch for task, sketch in sketches.items()},
    )
    level = next_use(tools.tracking, name, use).level
    sizes = part_sizes(loaded, "confirm")
    n = sum(sizes[task] for task in primary)
    rivals = _dev_scores(tools, name, candidate)
    chosen = str(candidate.version)
    expectations = tuple(
        expect(chosen, rivals, r.label, r.dev, primary, n, level) for r in references
    )
    shown = f"{pooled_score(rivals[chosen])} on dev" if chosen in rivals else "not scored on dev"
    tools.progress.step(f"candidate: version {candidate.version} of {name}, {shown}")
    for expectation in expectations:
        tools.progress.step(expectation.sentence())
    use = count_use(tools.tracking, name, dataclasses.replace(use, at=now()))
    tools.progress.step(
        f"use {use.number} of this confirm part, at level {use.level:.3g} of alpha {use.alpha:g}"
    )
    return use, expectations


def _dev_scores(tools: Tools, name: str, candidate: RegisteredMerge) -> dict[str, Scores]:
    """Of every merge that the choice was among, by version."""
    scores = {}
    for rival in candidates(tools.tracking, name):
        if not rival.is_scored or rival.questions != candidate.questions:
            continue
        try:
            scores[str(rival.version)] = read_scores(tools.tracking, rival.run_id, "dev")
        except AwayError:
            raise
        except TrackingError:
            # Its items were removed; it cannot be compared item by item.
            continue
    return scores


def _score(
    tools: Tools, guard: Tools | None, recipe: Recipe, name: str, candidate: RegisteredMerge
) -> Scores:
    path = checkpoint_of(tools, recipe, name, candidate)
    label, sha256 = f"version {candidate.version}", candidate.weights_sha256 or None
    result = result_of(recipe, tools, path, sha256=sha256)
    scores = tools.score_source(label, recipe, result, "confirm")
    if guard is not None:
        scores = _joined(scores, guard.score_source(label, recipe, result, "confirm"))
    return scores


def checkpoint_of(tools: Tools, recipe: Recipe, name: str, candidate: RegisteredMerge) -> Path:
    """The candidate's directory: in the work directory, else fetched from MLflow."""
    path = tools.work_dir / "merges" / candidate.plan_digest[:16]
    if read_manifest(path) is None or not hold(path):
        path = tools.resolve_one(recipe, f"models:/{name}/{candidate.version}").path
    return path


def _score_reference(
    tools: Tools, guard: Tools | None, recipe: Recipe, reference: Reference
) -> Scores:
    scores = reference.score(tools, recipe, "confirm")
    if guard is not None:
        more = guard.score_source(reference.label, recipe, reference.source, "confirm")
        scores = _joined(scores, more)
    return scores


def _joined(scores: Scores, more: Scores) -> Scores:
    return dataclasses.replace(scores, tasks={**scores.tasks, **more.tasks})
