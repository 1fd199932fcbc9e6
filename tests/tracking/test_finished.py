"""The note of a finished trial: it holds only while nothing that the trial stood on has changed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tracking_case import Case, make_recipe, make_source

from mergeops import methods
from mergeops.recipe import MethodSpec, Recipe
from mergeops.sources import Resolved
from mergeops.tracking import Beginning, FinishedTrial, finished, note_finished, recall

RESULT = {"name": "task_arithmetic", "notes": []}


@dataclasses.dataclass
class Noted:
    """A trial in MLflow, with real files, and what its note is made of."""

    case: Case
    recipe: Recipe
    trial: FinishedTrial

    def keep(self, recipe: Recipe | None = None, **changes: Any) -> bool:
        beginning = Beginning(recipe or self.recipe)
        # Its inputs were there before the command began.
        object.__setattr__(beginning, "began_ns", time.time_ns() + 10**9)
        return note_finished(beginning, dataclasses.replace(self.trial, **changes))

    def known(self, **changes: Any) -> dict[str, Any] | None:
        return recall(Beginning(dataclasses.replace(self.recipe, **changes)))


@pytest.fixture
def noted(case: Case, tmp_path: Path) -> Noted:
    places = {}
    for name in ("base", "math", "dates", "tasks", "merge"):
        places[name] = tmp_path / "files" / name
        places[name].mkdir(parents=True)
        (places[name] / "model.safetensors").write_bytes(name.encode())
    sources = {
        name: dataclasses.replace(
            make_source(name, uri=str(places[name])),
            path=places[name],
            run_id=case.sources[name].run_id,
        )
        for name in ("math", "dates")
    }
    base = dataclasses.replace(make_source("base", uri=str(places["base"])), path=places["base"])
    case = dataclasses.replace(case, sources=sources, base=base)
    run_id, version = case.whole()
    uris = {name: {"uri": source.uri, "weight": 0.5} for name, source in sources.items()}
    recipe = make_recipe(
        case.tracking.spec,
        base=base.uri,
        sources=uris,
        output={"dir": str(tmp_path / "work")},
        evaluate={"tasks": ["t"], "include_path": str(places["tasks"])},
    )
    trial = FinishedTrial(
        result=RESULT,
        run_id=run_id,
        version=("skills", version),
        resolved=Resolved(base, sources),
        task_places=[places["tasks"]],
        hub_data=[],
        checkpoint=places["merge"],
    )
    return Noted(case, recipe, trial)


def touched(path: Path) -> None:
    """The same size and content, written again."""
    path.write_bytes(path.read_bytes())


CHANGES: dict[str, Callable[[Noted], object]] = {
    "a weight file": lambda n: touched(n.trial.resolved.sources["math"].path / "model.safetensors"),
    "a new file of a source": lambda n: (
        n.trial.resolved.sources["math"].path / "config.json"
    ).write_text("{}"),
    "the base": lambda n: touched(n.case.base.path / "model.safetensors"),
    "a task": lambda n: touched(n.trial.task_places[0] / "model.safetensors"),
    "a task that is gone": lambda n: (n.trial.task_places[0] / "model.safetensors").unlink(),
    "the merge": lambda n: (n.trial.checkpoint / "model.safetensors").unlink(),
    "the trial's run": lambda n: n.case.tracking.client.delete_run(n.trial.run_id),
    "its version": lambda n: n.case.tracking.client.delete_model_version("skills", "1"),
    "a training run": lambda n: n.case.tracking.client.set_tag(
        n.trial.resolved.sources["math"].run_id, "mergeops.checkpoint_uri", "/elsewhere"
    ),
    "a parent's run": lambda n: n.case.tracking.client.delete_run(
        n.case.tracking.search_runs("tags.`mergeops.role` = 'source'")[0].info.run_id
    ),
    "the note": lambda n: next((Path(n.recipe.output.dir) / "finished").iterdir()).write_text("{"),
}


def test_any_change_of_what_a_trial_stood_on_is_noticed(noted: Noted) -> None:
    assert noted.known() is None
    for what, change in CHANGES.items():
        assert noted.keep(), what
        assert noted.known() == RESULT, what
        change(noted)
        assert noted.known() is None, what


def test_another_recipe_directory_or_program_is_another_trial(
    noted: Noted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert noted.keep() and noted.known() == RESULT
    assert noted.known(seed=1) is None
    evaluate = dataclasses.replace(noted.recipe.evaluate, num_fewshot=2)
    assert noted.known(evaluate=evaluate) is None
    with monkeypatch.context() as changed:
        changed.chdir(tmp_path)
        assert noted.known() is None
    with monkeypatch.context() as changed:
        changed.setenv("HF_DATASETS_OFFLINE", "1")
        assert noted.known() is None
    with monkeypatch.context() as changed:
        changed.setattr(finished, "__version__", "0.0.1")
        assert noted.known() is None
    packages = tmp_path / "packages"
    (packages / "torch-2.0.0.dist-info").mkdir(parents=True)
    with monkeypatch.context() as changed:
        changed.syspath_prepend(packages)
        assert noted.known() is None
    # A secret is no part of what names the note.
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert noted.known() == RESULT


def test_what_may_change_without_a_sign_leaves_no_note(
    noted: Noted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours, resolved = methods.get("task_arithmetic"), noted.trial.resolved

    def merge(*args: Any) -> Any:
        return ours.merge(*args)

    merge.__module__ = "somebody.median"
    with monkeypatch.context() as changed:
        of_plug_in = dataclasses.replace(ours, merge=merge)
        changed.setattr(methods, "get", lambda name: of_plug_in)
        assert Beginning(noted.recipe).key is None
    with monkeypatch.context() as changed:
        (tmp_path / "__editable__.lm_eval-0.4.13.pth").write_text("/src/lm_eval")
        changed.syspath_prepend(tmp_path)
        assert Beginning(noted.recipe).key is None
        assert not noted.keep()
    # Written while the command ran: it may not be what was read.
    beginning = Beginning(noted.recipe)
    touched(resolved.sources["math"].path / "model.safetensors")
    assert not note_finished(beginning, noted.trial)
    cache = Path(noted.recipe.output.dir) / "cache"
    for change in (
        {"uri": "s3://bucket/math"},
        {"path": cache / "downloads" / "math"},
        {"adapter_base": cache / "converted" / "base"},
    ):
        math = dataclasses.replace(resolved.sources["math"], **change)
        sources = {**resolved.sources, "math": math}
        assert not noted.keep(resolved=Resolved(resolved.base, sources))
    # The hub is asked which commit a name means now.
    monkeypatch.delenv("HF_HUB_OFFLINE")
    commits = {"math/set": "a" * 40}
    monkeypatch.setattr(finished, "commit_of", lambda name, kind: commits.get(name))
    assert noted.keep(hub_data=[("math/set", "a" * 40)])
    assert noted.known() == RESULT
    commits["math/set"] = "b" * 40
    assert noted.known() is None
    commits.clear()  # No network.
    assert noted.known() is None


def test_another_file_of_prompts_is_noticed(noted: Noted, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n")
    method = MethodSpec("fisher", methods.get("fisher").parameters(), str(prompts))
    assert noted.keep(dataclasses.replace(noted.recipe, method=method))
    assert noted.known(method=method) == RESULT
    touched(prompts)
    assert noted.known(method=method) is None
