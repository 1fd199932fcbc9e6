"""Which model an adapter applies to: its words and the recipe's, never the current directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mergeops.errors import SourceError
from mergeops.recipe.recipe import Recipe
from mergeops.sources.resolution import resolve, resolve_uri

MAIN, PINNED = "a" * 40, "b" * 40


@pytest.fixture
def hub(
    full_and_adapter: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A hub cache with two commits of org/base: main, and the tag v1."""
    from huggingface_hub import constants

    repository = tmp_path / "hub/models--org--base"
    (repository / "refs").mkdir(parents=True)
    for name, commit in {"main": MAIN, "v1": PINNED}.items():
        (repository / "refs" / name).write_text(commit)
        shutil.copytree(full_and_adapter[0], repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


def adapter(make: Any, base: str, revision: str | None = None) -> Path:
    folder: Path = make(base)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"revision": revision}))
    return folder


def base_of(source: Path, tmp_path: Path, base: str | None, own: str | None = None) -> Path:
    recipe = Recipe.from_dict(
        {
            "method": "linear",
            "base": base,
            "sources": {"a": {"uri": str(source), **({"base": own} if own else {})}},
        }
    )
    found = resolve(recipe, cache_dir=tmp_path / "cache").sources["a"].adapter_base
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("revision", "base", "commit"),
    [
        (None, "hf://org/base", MAIN),
        (None, "hf://org/base@v1", PINNED),
        ("v1", "hf://org/base@v1", PINNED),
        ("v1", f"hf://org/base@{PINNED}", PINNED),
        (PINNED, "hf://org/base@v1", PINNED),
        ("main", "hf://org/base", MAIN),
    ],
)
def test_an_adapter_is_added_to_the_commit_that_it_was_trained_on(
    revision: str | None,
    base: str,
    commit: str,
    hub: Path,
    fabricate_adapter: Any,
    tmp_path: Path,
) -> None:
    source = adapter(fabricate_adapter, "org/base", revision)
    assert base_of(source, tmp_path, base).name == commit


@pytest.mark.parametrize(("base", "own"), [("hf://org/base", None), (None, "hf://org/base")])
def test_another_commit_than_the_adapters_is_refused(
    base: str | None, own: str | None, hub: Path, fabricate_adapter: Any, tmp_path: Path
) -> None:
    source = adapter(fabricate_adapter, "org/base", "v1")
    wanted = "trained on hf://org/base@v1, and hf://org/base is another commit of it; name hf://or"
    with pytest.raises(SourceError, match=wanted):
        base_of(source, tmp_path, base, own)


def test_a_revision_that_is_written_out_for_one_adapter_is_meant(
    hub: Path, fabricate_adapter: Any, tmp_path: Path
) -> None:
    source = adapter(fabricate_adapter, "org/base", "v1")
    assert base_of(source, tmp_path, None, "hf://org/base@main").name == MAIN


@pytest.mark.parametrize("commit", [MAIN, PINNED])
def test_a_path_into_another_machines_hub_cache_is_the_repository_and_its_commit(
    commit: str, hub: Path, fabricate_adapter: Any, tmp_path: Path
) -> None:
    said = f"/srv/cache/hub/models--org--base/snapshots/{commit}"
    source = adapter(fabricate_adapter, said)
    assert base_of(source, tmp_path, f"hf://org/base@{commit}").name == commit
    with pytest.raises(SourceError, match=f"trained on hf://org/base@{commit}, which is not reac"):
        base_of(source, tmp_path, None)


def test_a_relative_base_is_never_what_lies_in_the_current_directory(
    full_and_adapter: tuple[Path, Path],
    fabricate_adapter: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = tmp_path / "named"
    for folder in (named, tmp_path / "project/base"):
        shutil.copytree(full_and_adapter[0], folder)
    monkeypatch.chdir(tmp_path / "project")
    source = adapter(fabricate_adapter, "base")
    wanted = (
        "is a LoRA adapter that was trained on base, which is relative to the directory of that "
        "training, and nobody noted that; set sources.*base to that model"
    )
    for base in (None, str(named)):
        with pytest.raises(SourceError, match=wanted):
            base_of(source, tmp_path, base)
    assert base_of(source, tmp_path, None, str(named)) == named
    # The recipe means its own base, and it is the one that the adapter names.
    assert base_of(source, tmp_path, "base") == tmp_path / "project/base"


def test_an_absolute_base_that_is_here_needs_no_word(
    full_and_adapter: tuple[Path, Path], fabricate_adapter: Any, tmp_path: Path
) -> None:
    source = adapter(fabricate_adapter, str(full_and_adapter[0]))
    found = resolve_uri(str(source), cache_dir=tmp_path / "cache")
    assert found.adapter_base == full_and_adapter[0]


@pytest.mark.parametrize("suffix", ["-bnb-4bit", "-unsloth-bnb-4bit"])
def test_a_four_bit_repository_stands_for_the_model_whose_weights_it_rounds(
    suffix: str, hub: Path, fabricate_adapter: Any, tmp_path: Path
) -> None:
    source = adapter(fabricate_adapter, f"org/base{suffix}", "1" * 40)
    assert base_of(source, tmp_path, "hf://org/base").name == MAIN
