"""The registry of source kinds: one file adds one, and messages list what there is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.training_runs import Fabricator

from mergeops.checkpoint import weights_sha256
from mergeops.errors import SourceError
from mergeops.recipe.settings import TrackingSpec
from mergeops.sources import schemes
from mergeops.sources.contents import Location
from mergeops.sources.remote.directory import LocalDirectory
from mergeops.sources.resolution import resolve_uri

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
MERGEOPS = """
import sys
import mergeops.sources
mergeops.sources.__path__.append(sys.argv.pop(1))
from mergeops.cli.main import main
main()
"""


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """A directory with the file that the page for contributors shows."""
    (code,) = re.findall(
        r'^```python title="mergeops/sources/toys.py"\n(.*?)^```$',
        PAGE.read_text(encoding="utf-8"),
        re.M | re.S,
    )
    folder = tmp_path / "kinds"
    folder.mkdir()
    (folder / "toys.py").write_text(code)
    return folder


def merge(kinds: Path, sources: dict[str, str], out: Path, box: Path) -> Any:
    """``mergeops merge``, as if the files of ``kinds`` were in mergeops/sources."""
    recipe = out.with_suffix(".yaml")
    recipe.write_text(json.dumps({"sources": sources, "method": "linear", "base": None}))
    return subprocess.run(
        [sys.executable, "-c", MERGEOPS, str(kinds), "merge", str(recipe), str(out), "-q"],
        capture_output=True,
        text=True,
        cwd=out.parent,
        env={**os.environ, "TOY_BOX": str(box)},
    )


def test_the_kind_of_the_page_for_contributors_is_merged_from(
    kinds: Path, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "box").mkdir()
    (tmp_path / "none").mkdir()
    for i, name in enumerate(("alpha", "beta")):
        (tmp_path / "box" / name).symlink_to(tiny_llama(seed=i))
    toys = {"a": "toy://alpha", "b": "toy://beta"}
    plain = {"a": str(tmp_path / "box/alpha"), "b": str(tmp_path / "box/beta")}
    for sources, out in ((toys, "toys"), (plain, "plain")):
        done = merge(kinds, sources, tmp_path / out, tmp_path / "box")
        assert done.returncode == 0, done.stderr
    assert weights_sha256(tmp_path / "toys") == weights_sha256(tmp_path / "plain")
    assert 'base_model: ["alpha", "beta"]' in (tmp_path / "toys/README.md").read_text()

    done = merge(kinds, toys, tmp_path / "gone", tmp_path / "none")
    assert f"toy://alpha: there is no {tmp_path}/none/alpha; set TOY_BOX" in done.stderr
    done = merge(kinds, {**plain, "c": "tyo://alpha"}, tmp_path / "typo", tmp_path / "box")
    assert "a source is a directory, " in done.stderr and ", toy://NAME, " in done.stderr
    assert "hf://ORG/NAME, " in done.stderr
    assert ", or a directory in a store that MLflow reads" in done.stderr


def test_messages_list_what_a_source_may_be_in_one_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another kind of source has a hint too.
    schemes.allowed()
    known = {"", "file:", "runs:/", "models:/", "hf://", "://"}
    kept = {prefix: scheme for prefix, scheme in schemes._REGISTRY.items() if prefix in known}
    monkeypatch.setattr(schemes, "_REGISTRY", kept)
    with pytest.raises(SourceError) as unknown:
        resolve_uri("htp://x/y", cache_dir=tmp_path)
    assert str(unknown.value) == (
        "htp://x/y has a scheme that is not known; a source is a directory, runs:/ID, "
        "models:/NAME/VERSION, models:/NAME@ALIAS, hf://ORG/NAME, or a directory in a store that "
        "MLflow reads, such as s3://BUCKET/PATH"
    )
    with pytest.raises(SourceError) as gone:
        resolve_uri(str(tmp_path / "gone"), cache_dir=tmp_path)
    assert str(gone.value) == (
        f"there is no directory {tmp_path}/gone; a source is a directory, runs:/ID, "
        "models:/NAME/VERSION, models:/NAME@ALIAS or hf://ORG/NAME"
    )


@pytest.mark.parametrize(
    ("uri", "prefix"),
    [
        ("a/b", ""),
        ("~/a@b", ""),
        ("file:///a", "file:"),
        ("runs:/4f2c", "runs:/"),
        ("runs:4f2c", ""),
        ("models:/a@b", "models:/"),
        ("hf://org/name", "hf://"),
        ("hf:/org/name", ""),
        ("mlflow-artifacts:/a", "mlflow-artifacts:/"),
        ("s3://bucket/a", "://"),
    ],
)
def test_the_longest_prefix_decides(uri: str, prefix: str) -> None:
    assert prefix in schemes.scheme_of(uri).prefixes


def test_a_prefix_that_is_no_tuple_is_refused() -> None:
    with pytest.raises(TypeError, match="prefixes and hints of a scheme are tuples"):
        schemes.Scheme("toy://", hints=())(lambda uri, context: None)  # type: ignore


def test_a_scheme_that_two_files_claim_is_refused() -> None:
    schemes.scheme_of("hf://org/name")
    with pytest.raises(TypeError, match=r"scheme 'hf://' is in mergeops.sources.hub and in "):
        schemes.Scheme(("hf://",), hints=())(lambda uri, context: None)  # type: ignore


@pytest.mark.parametrize("takes_path", [False, True])
def test_a_version_of_a_registered_model_may_be_of_any_kind(
    takes_path: bool, fabricate: Fabricator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(uri: str, context: Any) -> Location:
        path = uri.removeprefix("toy://box").lstrip("/")
        return Location.at(LocalDirectory(fabricate.checkpoint.parent / path))

    monkeypatch.setattr(schemes, "_REGISTRY", dict(schemes._REGISTRY))
    schemes.Scheme(("toy://",), hints=(), takes_path=takes_path)(find)
    fabricate.client.create_registered_model("skills")
    fabricate.client.create_model_version("skills", "toy://box", fabricate.run())
    uri = f"models:/skills/1/{fabricate.checkpoint.name}"
    tracking = TrackingSpec(uri=fabricate.uri)
    source = resolve_uri(uri, cache_dir=fabricate.folder / "cache", tracking=tracking)
    assert (source.path, source.registered) == (fabricate.checkpoint, "skills/1")
