"""A directory that holds two models is a question to the user, not a guess."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergeops.checkpoint import ADAPTER, ADAPTER_CONFIG, open_checkpoint, weight_files
from mergeops.errors import SourceError
from mergeops.recipe import Recipe
from mergeops.sources import resolve

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def both(tiny_llama: Make, tiny_lora: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full model with an adapter on itself beside it."""
    base = tiny_llama()
    folder = tmp_path_factory.mktemp("both") / "trained"
    shutil.copytree(base, folder)
    adapter = tiny_lora(base)
    for name in (ADAPTER, ADAPTER_CONFIG):
        shutil.copy(adapter / name, folder / name)
    return folder


def resolved(source: dict[str, Any], cache: Path, base: Path | None = None, **method: str) -> Any:
    recipe = Recipe.from_dict(
        {
            "method": {"name": "linear", **method},
            "base": str(base) if base else None,
            "sources": {"a": source},
        }
    )
    return resolve(recipe, cache_dir=cache)


def test_a_full_model_with_an_adapter_beside_it_asks_which_is_meant(
    both: Path, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="a full model and a LoRA adapter beside it") as refused:
        resolved({"uri": str(both)}, tmp_path)
    assert "set sources.a.base to the model that it applies to" in str(refused.value)
    assert f"move {ADAPTER_CONFIG} and the adapter's weights out" in str(refused.value)


def test_with_a_base_of_its_own_the_adapter_is_meant(both: Path, tmp_path: Path) -> None:
    found = resolved({"uri": str(both), "base": str(both)}, tmp_path)
    assert found.sources["a"].adapter_base == both
    assert found.sources["a"].path == both


def test_without_the_adapter_s_weights_the_full_model_is_meant(both: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(both, tmp_path / "full"))
    (folder / ADAPTER).unlink()
    assert resolved({"uri": str(folder)}, tmp_path).sources["a"].adapter_base is None


def test_a_base_with_an_adapter_beside_it_is_a_question_too(
    both: Path, tiny_llama: Make, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="base is .*, which holds a full model and a LoRA adap"):
        resolved({"uri": str(tiny_llama())}, tmp_path, both, name="task_arithmetic")


def sharded(model: Path, out: Path, tiny_llama: Make) -> Path:
    """A model in one file, over which another was saved in several."""
    shutil.copytree(model, out)
    other = tiny_llama(like=model, seed=1, max_shard_size="20KB")
    for file in [*other.glob("model-*"), other / "model.safetensors.index.json"]:
        shutil.copy(file, out / file.name)
    return out


def test_one_file_beside_an_index_of_others_is_refused(tiny_llama: Make, tmp_path: Path) -> None:
    folder = sharded(tiny_llama(), tmp_path / "twice", tiny_llama)
    with pytest.raises(
        SourceError, match="two sets of weights: model.safetensors, and [0-9]+ file"
    ):
        weight_files(folder)
    (folder / "model.safetensors").unlink()
    assert len(open_checkpoint(folder).tensors) == 21


def test_an_index_that_names_nothing_else_is_passed_over(tiny_llama: Make, tmp_path: Path) -> None:
    folder = sharded(tiny_llama(), tmp_path / "stale", tiny_llama)
    for file in folder.glob("model-*"):
        file.unlink()
    assert weight_files(folder) == [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "model.safetensors"}}))
    assert weight_files(folder) == [folder / "model.safetensors"]
    index.write_text("no JSON")
    assert weight_files(folder) == [folder / "model.safetensors"]
