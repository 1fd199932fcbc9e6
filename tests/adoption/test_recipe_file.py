"""The recipe that adopt writes: Hydra takes it as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergeops.adoption.found import FoundRun
from mergeops.adoption.recipe_file import source_names, write_recipe, write_window
from mergeops.errors import ConfigError, SourceError
from mergeops.recipe.composition import compose

SHAPE = {"vocab_size": 128}


def found(name: str, run_id: str = "r1", **facts: Any) -> FoundRun:
    one = FoundRun(
        run_id,
        name,
        "FINISHED",
        uri=f"runs:/{run_id}/checkpoint-2",
        kind="full",
        step=2,
        base="org/base",
        architectures=("LlamaForCausalLM",),
        shape=SHAPE,
        metrics={"eval_loss": 1.23456},
    )
    return dataclasses.replace(one, **facts)


def test_the_file_reads_well_and_is_reproducible(tmp_path: Path) -> None:
    path = tmp_path / "conf/recipe/runs.yaml"
    runs = [
        found("math", "r1"),
        found("dates lr=1e-3", "r2", status="FAILED", metrics={}, kind="lora"),
        found("other", "r3", base="org/x"),
        found("gone", "r4", problem="it is gone"),
    ]
    assert [one.run_name for one in write_recipe(runs, path)] == ["dates lr=1e-3", "math"]
    assert path.read_text() == (
        "# @package _global_\n"
        "# Written by `mergeops adopt`: 2 run(s) that can be merged with each other.\n"
        "# Left out, since it was trained on org/x, the largest group on org/base: other\n"
        'base: "hf://org/base"\n'
        "sources:\n"
        "  # dates lr=1e-3, FAILED, step 2, LoRA\n"
        '  dates_lr_1e_3: {uri: "runs:/r2/checkpoint-2"}\n'
        "  # math, FINISHED, step 2, eval loss 1.235\n"
        '  math: {uri: "runs:/r1/checkpoint-2"}\n'
    )


def test_hydra_composes_it(tmp_path: Path) -> None:
    base = tmp_path / "a base, with: signs"
    base.mkdir()
    runs = [found("math", "r1", base=str(base)), found("dates", "r2", base=str(base))]
    path_map = {"/old: #": "s3://new/${x}"}
    write_recipe(runs, tmp_path / "conf/recipe/runs.yaml", path_map=path_map)
    recipe = compose(["recipe=runs", "method=linear"], config_dir=tmp_path / "conf")
    assert recipe.base == str(base)
    assert {name: s.uri for name, s in recipe.sources.items()} == {
        "dates": "runs:/r2/checkpoint-2",
        "math": "runs:/r1/checkpoint-2",
    }
    assert recipe.path_map == path_map


def test_a_run_without_a_base_gives_a_recipe_without_one(tmp_path: Path) -> None:
    write_recipe([found("a", base=None)], tmp_path / "r.yaml")
    assert yaml.safe_load((tmp_path / "r.yaml").read_text())["base"] is None


def test_a_line_break_in_a_run_name_stays_inside_the_comment(tmp_path: Path) -> None:
    write_recipe([found("evil\nbase: /etc\u2028x")], tmp_path / "r.yaml")
    assert yaml.safe_load((tmp_path / "r.yaml").read_text())["base"] == "hf://org/base"


def test_names_are_short_unique_and_valid() -> None:
    names = [
        *("math", "Math!", "3 epochs", "base", "", "---", "Zahlen-ähnlich", "x" * 99),
        *("run_base", "math_2"),
    ]
    made = source_names([found(name) for name in names])
    assert made == [
        *("math", "math_2", "run_3_epochs", "run_base", "run", "run_2", "zahlen_hnlich"),
        *("x" * 40, "run_base_2", "math_2_2"),
    ]
    assert all(name.isidentifier() for name in made)


def test_our_own_file_is_replaced_another_is_not(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    write_recipe([found("a")], path)
    write_recipe([found("b")], path)
    assert "b: {uri" in path.read_text()
    path.write_text("# mine\n")
    with pytest.raises(ConfigError, match=r"r.yaml is there and was not written by .*add --force"):
        write_recipe([found("a")], path)
    assert path.read_text() == "# mine\n"
    write_recipe([found("a")], path, force=True)
    assert "a: {uri" in path.read_text()


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ConfigError, match="r.yaml cannot be written: No space left on device"):
        write_recipe([found("a")], tmp_path / "r.yaml")
    assert list(tmp_path.iterdir()) == []


def test_without_a_usable_run_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no run left a usable checkpoint, so there is nothing"):
        write_recipe([found("a", problem="gone")], tmp_path / "r.yaml")
    assert list(tmp_path.iterdir()) == []


def checkpoint(folder: Path, weights: bytes, config: str | None = None) -> str:
    folder.mkdir()
    name = "model.safetensors" if config is None else "adapter_model.safetensors"
    (folder / name).write_bytes(weights)
    if config is not None:
        (folder / "adapter_config.json").write_text(config)
    return str(folder)


def test_of_runs_with_the_same_weights_one_is_written(tmp_path: Path) -> None:
    # The change is between the samples: only reading all of it tells.
    odd = bytearray(10_000_000)
    odd[700_001] = 1
    places = {
        "a": checkpoint(tmp_path / "a", bytes(10_000_000)),
        "b": checkpoint(tmp_path / "b", bytes(10_000_000)),
        "c": checkpoint(tmp_path / "c", bytes(odd)),
        "d": checkpoint(tmp_path / "d", bytes(100), '{"lora_alpha": 8}'),
        "e": checkpoint(tmp_path / "e", bytes(100), '{"lora_alpha": 16}'),
        "f": "s3://bucket/f",
        "g": "s3://bucket/f",
    }
    runs = [found(name, name, checkpoint=place) for name, place in places.items()]
    written = write_recipe(runs, tmp_path / "r.yaml")
    assert [one.run_name for one in written] == ["a", "c", "d", "e", "f", "g"]
    assert "# Left out, since it has the very weights of a: b\n" in (
        (tmp_path / "r.yaml").read_text()
    )


@pytest.mark.parametrize(
    ("own", "base", "written", "is_told"),
    [
        ("org/base", "org/base", "hf://org/base", False),
        ("org/base@v1", "org/base@v1", "hf://org/base@v1", True),
        ("org/base-bnb-4bit", "org/base", "hf://org/base", True),
        ("base", "/models/base", "/models/base", True),
        ("/models/base", "/models/base", "/models/base", False),
    ],
)
def test_an_adapter_that_calls_its_base_otherwise_is_told_which_one_it_is(
    own: str, base: str, written: str, is_told: bool, tmp_path: Path
) -> None:
    write_recipe([found("a", kind="lora", adapter_base=own, base=base)], tmp_path / "r.yaml")
    recipe = yaml.safe_load((tmp_path / "r.yaml").read_text())
    assert recipe["base"] == written
    assert recipe["sources"]["a"].get("base") == (written if is_told else None)


def test_all_checkpoints_of_a_run_are_a_recipe_oldest_first(tmp_path: Path) -> None:
    path = tmp_path / "window.yaml"
    kept = ("checkpoint-30", "checkpoint-20", "checkpoint-10")
    runs = [found("math", "r1", checkpoints=kept), found("other", "r2")]
    assert write_window(runs, "math", path).run_id == "r1"
    recipe = yaml.safe_load(path.read_text())
    assert recipe["base"] == "hf://org/base"
    assert [(n, s["uri"]) for n, s in recipe["sources"].items()] == [
        ("checkpoint_10", "runs:/r1/checkpoint-10"),
        ("checkpoint_20", "runs:/r1/checkpoint-20"),
        ("checkpoint_30", "runs:/r1/checkpoint-30"),
    ]
    write_window(runs, "r1", path)  # again, by the id
    with pytest.raises(ConfigError, match="--all-checkpoints is 'maths', but there are: math, oth"):
        write_window(runs, "maths", path)
    with pytest.raises(SourceError, match="run other has no two checkpoints to average: it kept 0"):
        write_window(runs, "other", path)
    with pytest.raises(ConfigError, match="2 runs have that name; give its id"):
        write_window([*runs, found("math", "r3")], "math", path)
