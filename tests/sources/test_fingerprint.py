"""Whose a checkpoint is: losses and steps say it, not the place where it lies."""

from __future__ import annotations

from typing import Any

import pytest
from support.training_runs import Fabricator, discover

from mergeops.adoption.found import FoundRun

NAN = float("nan")


def losses(*pairs: tuple[int, float]) -> dict[str, Any]:
    return {"log_history": [{"step": step, "loss": loss} for step, loss in pairs]}


def only(fabricate: Fabricator) -> FoundRun:
    (found,) = discover("old", tracking_uri=fabricate.uri)
    return found


@pytest.mark.parametrize(
    ("saved", "logged", "wanted"),
    [
        ([(2, 2.31)], [(2, 1.87)], "has loss 2.31 at step 2, this run logged 1.87"),
        ([(2, 2.0), (4, 1.5)], [(2, 2.0), (4, 1.0), (6, 0.5)], "loss 1.5 at step 4, this run log"),
        ([(2, NAN)], [(2, 1.0)], "has loss nan at step 2, this run logged 1"),
        ([(3, 1.0), (5, 0.5)], [(2, 2.0), (4, 1.5), (6, 1.0)], "loss at step 3, 5, this run logg"),
        ([(2, 2.0), (8, 1.0), (9, 1.0)], [(2, 2.0)], "up to step 9, this run logged it up to st"),
    ],
)
def test_a_checkpoint_of_other_numbers_is_another_runs(
    saved: list[tuple[int, float]],
    logged: list[tuple[int, float]],
    wanted: str,
    fabricate: Fabricator,
) -> None:
    output = fabricate.folder / "trainer_output"
    fabricate.save(output / "checkpoint-9", state=losses(*saved))
    fabricate.run("a", params={"output_dir": str(output)}, metrics={"loss": logged})
    problem = str(only(fabricate).problem)
    assert problem.startswith(f"{output}/checkpoint-9 was written by another run: its trainer_stat")
    assert wanted in problem


@pytest.mark.parametrize(
    ("saved", "logged"),
    [
        ([(2, 2.0)], [(2, 2.0), (4, 1.0)]),
        # A run that was resumed: the state holds what an earlier run logged.
        ([(2, 2.0), (4, 1.0)], [(4, 1.0), (6, 0.5)]),
        # Two trainings in one run: one step has the losses of both.
        ([(2, 2.0)], [(2, 3.0), (2, 2.0)]),
        ([(2, NAN)], [(2, NAN)]),
    ],
)
def test_a_checkpoint_of_the_same_numbers_is_the_runs(
    saved: list[tuple[int, float]], logged: list[tuple[int, float]], fabricate: Fabricator
) -> None:
    output = fabricate.folder / "trainer_output"
    fabricate.save(output / "checkpoint-2", state=losses(*saved))
    fabricate.run("a", params={"output_dir": str(output)}, metrics={"loss": logged})
    assert only(fabricate).problem is None


def test_the_checkpoint_that_a_later_run_did_not_write_over_is_still_found(
    fabricate: Fabricator,
) -> None:
    output = fabricate.folder / "trainer_output"
    fabricate.save(output / "checkpoint-2", state=losses((2, 9.0)))
    fabricate.save(output / "checkpoint-4", state=losses((2, 2.0), (4, 1.0)))
    fabricate.run("a", params={"output_dir": str(output)}, metrics={"loss": [(2, 2.0), (4, 1.0)]})
    one = only(fabricate)
    assert (one.problem, one.step) == (None, 4)


@pytest.mark.parametrize("later", [9.0, 1.0])
def test_a_save_before_the_first_logged_loss_is_judged_by_the_one_beside_it(
    later: float, fabricate: Fabricator
) -> None:
    """Losses every third step, a save every second: the first save's state has none."""
    output = fabricate.folder / "trainer_output"
    first = fabricate.save(output / "checkpoint-2", state=losses())
    fabricate.save(output / "checkpoint-4", state=losses((3, later)))
    params = {"output_dir": str(output)}
    run_id = fabricate.run("a", params=params, metrics={"loss": [(3, 1.0)]})
    if later == 1.0:
        assert only(fabricate).step == 4
        return
    problem = str(only(fabricate).problem)
    assert f"checkpoint-2 may be of the run that wrote {output}/checkpoint-4: no loss" in problem
    assert "set its tag mergeops.checkpoint_uri to it" in problem
    fabricate.client.set_tag(run_id, "mergeops.checkpoint_uri", str(first))
    assert only(fabricate).checkpoint == str(first)


def test_a_run_that_went_on_from_a_save_leaves_it_to_its_own_run(fabricate: Fabricator) -> None:
    output = fabricate.folder / "trainer_output"
    fabricate.save(output / "checkpoint-2", state=losses())
    resumed = losses((3, 1.0), (6, 0.5), (9, 0.25))
    fabricate.save(output / "checkpoint-10", state=resumed)
    params = {"output_dir": str(output)}
    fabricate.run("a", params=params, metrics={"loss": [(3, 1.0)]})
    assert only(fabricate).step == 2


@pytest.mark.parametrize("loss", [1.5, 1.6, None])
def test_a_relative_directory_is_the_runs_only_where_a_loss_proves_it(
    loss: float | None, fabricate: Fabricator, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = fabricate.folder / "another project"
    state = None if loss is None else losses((2, loss))
    fabricate.save(project / "trainer_output/checkpoint-2", state=state)
    monkeypatch.chdir(project)
    fabricate.run("a", params={"output_dir": "trainer_output"}, metrics={"loss": [(2, 1.5)]})
    one = only(fabricate)
    if loss == 1.5:
        assert (one.problem, one.step) == (None, 2)
    elif loss is None:
        assert "param output_dir is relative, and no loss in a trainer_state.json there is one" in (
            str(one.problem)
        )
    else:
        assert "was written by another run: " in str(one.problem)


def test_a_pointer_to_another_runs_checkpoint_is_not_followed(fabricate: Fabricator) -> None:
    wrong = fabricate.save(fabricate.folder / "wrong/checkpoint-2", state=losses((2, 9.0)))
    run_id = fabricate.run("a", metrics={"loss": [(2, 1.5)]})
    tags = {"mlflow.model.isExternal": "true", "mergeops.checkpoint_uri": str(wrong)}
    fabricate.client.create_logged_model(fabricate.experiment, "a", source_run_id=run_id, tags=tags)
    assert "was written by another run: its trainer_state.json has loss 9" in str(
        only(fabricate).problem
    )
