"""A model's directory with the files that lie beside it: links, and its own files win."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergeops.errors import SourceError
from mergeops.sources.completed import completed


def directory(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / f"{name}.json").write_text(text)
    return path


def test_a_directory_that_lacks_nothing_is_taken_as_it_is(tmp_path: Path) -> None:
    model = directory(tmp_path / "model", config="own", tokenizer="own")
    beside = directory(tmp_path / "beside", tokenizer="other")
    assert completed(model, [beside, tmp_path / "gone"], tmp_path / "cache") == model
    assert not (tmp_path / "cache").exists()


def test_what_it_lacks_is_linked_and_its_own_files_win(tmp_path: Path) -> None:
    model = directory(tmp_path / "model", config="own")
    beside = directory(tmp_path / "beside", tokenizer="other", config="other")
    made = completed(model, [beside], tmp_path / "cache")
    assert {file.name: file.read_text() for file in made.iterdir()} == {
        "config.json": "own",
        "tokenizer.json": "other",
    }
    # What has changed since is linked anew.
    (beside / "tokenizer.json").rename(beside / "vocab.json")
    assert completed(model, [beside], tmp_path / "cache") == made
    assert sorted(file.name for file in made.iterdir()) == ["config.json", "vocab.json"]


def test_files_of_its_folders_are_linked_inside_it(tmp_path: Path) -> None:
    model = directory(tmp_path / "model", config="own")
    pooling = directory(tmp_path / "fetched", config="mean") / "config.json"
    nested = {"1_Pooling/config.json": pooling}
    made = completed(model, [], tmp_path / "cache", nested)
    assert (made / "1_Pooling" / "config.json").read_text() == "mean"
    # It was fetched anew to another place.
    pooling.rename(tmp_path / "fetched" / "new.json")
    again = {"1_Pooling/config.json": tmp_path / "fetched" / "new.json"}
    assert (completed(model, [], tmp_path / "cache", again) / "1_Pooling/config.json").is_file()


def test_a_cache_that_takes_no_links_is_named(tmp_path: Path) -> None:
    model = directory(tmp_path / "model", config="own")
    beside = directory(tmp_path / "beside", tokenizer="other")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(SourceError, match="lacks files that lie beside it, and links to them cann"):
        completed(model, [beside], tmp_path / "cache")
