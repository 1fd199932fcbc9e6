"""hf:// URIs: the hub's cache, offline, and every way in which the hub says no."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from mergeops.errors import SourceError
from mergeops.sources import hub
from mergeops.sources.resolution import resolve_uri

COMMIT = "a" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def put(cache: Path, checkpoint: Path, repository: str = "org/tiny", ref: str = "main") -> Path:
    """Lay a checkpoint into the hub's cache as a download does."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs" / ref).parent.mkdir(parents=True)
    (folder / "refs" / ref).write_text(COMMIT)
    return Path(shutil.copytree(checkpoint, folder / "snapshots" / COMMIT))


def test_a_cached_repository_is_found_offline_with_its_commit(
    cache: Path, full_and_adapter: tuple[Path, Path], tmp_path: Path
) -> None:
    snapshot = put(cache, full_and_adapter[0])
    for uri in ("hf://org/tiny", "hf://org/tiny@main", f"hf://org/tiny@{COMMIT}"):
        source = resolve_uri(uri, cache_dir=tmp_path / "cache")
        assert (source.path, source.revision) == (snapshot, COMMIT)


def test_offline_and_not_cached_fails_at_once_with_what_to_do(cache: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    wanted = (
        "hf://org/gone@v1 is not in the hub's cache and HF_HUB_OFFLINE is set; unset it, or run "
        "`hf download org/gone --revision v1`"
    )
    with pytest.raises(SourceError, match=wanted):
        resolve_uri("hf://org/gone@v1", cache_dir=tmp_path)
    assert time.monotonic() - started < 5


def test_of_a_repository_of_gguf_files_one_is_to_be_named(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "README.md").write_text("Q4_K_M, Q8_0")
    snapshot = put(cache, tmp_path / "files", "org/tiny-GGUF")
    with pytest.raises(SourceError, match="one is to be named: hf://org/tiny-GGUF/FILE.gguf"):
        resolve_uri("hf://org/tiny-GGUF", cache_dir=tmp_path / "cache")
    with pytest.raises(SourceError, match="hf://org/tiny-GGUF has no file other.gguf"):
        resolve_uri("hf://org/tiny-GGUF/other.gguf", cache_dir=tmp_path / "cache")
    # One that is in the cache is the one that was asked for.
    (snapshot / "tiny.Q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match="tiny.Q8_0.gguf cannot be read as a GGUF file"):
        resolve_uri("hf://org/tiny-GGUF", cache_dir=tmp_path / "cache")


def test_an_adapter_finds_its_base_by_hub_id_in_the_recipe(
    cache: Path, full_and_adapter: tuple[Path, Path], fabricate_adapter: Any, tmp_path: Path
) -> None:
    from mergeops.recipe.recipe import Recipe
    from mergeops.sources.resolution import resolve

    snapshot = put(cache, full_and_adapter[0])
    recipe = Recipe.from_dict(
        {
            "method": "linear",
            "base": f"hf://org/tiny@{COMMIT}",
            "sources": {"a": str(fabricate_adapter("org/tiny"))},
        }
    )
    resolved = resolve(recipe, cache_dir=tmp_path / "cache")
    assert resolved.sources["a"].adapter_base == snapshot
    assert resolved.base is not None
    assert resolved.base.revision == COMMIT


def test_only_safetensors_and_small_files_are_asked_for(
    full_and_adapter: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, Any] = {}

    def download(repository: str, **how: Any) -> str:
        asked.update(how, repository=repository)
        return str(full_and_adapter[0])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub.download("hf://org/tiny@v2")
    assert (asked["repository"], asked["revision"]) == ("org/tiny", "v2")
    there = [
        *("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        *("tokenizer.model", "chat_template.jinja", "README.md", "pytorch_model.bin", "evil.py"),
        *("training_args.bin", "optimizer.pt", "x.pkl", "onnx/config.json", "model.gguf"),
        *("original/model.safetensors", "consolidated.safetensors"),
    ]
    kept = filter_repo_objects(
        there,
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(kept) == there[:6]


def response(status: int) -> Any:
    import httpx2

    return httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/x"))


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (lambda: errors.GatedRepoError("no", response=response(403)), "is gated; accept its terms"),
        (
            lambda: errors.RepositoryNotFoundError("no", response=response(404)),
            "there is no such repository on the hub, or it is private",
        ),
        (
            lambda: errors.RevisionNotFoundError("no", response=response(404)),
            "the repository has no revision 'v9'",
        ),
        (lambda: OSError("disk is full"), "cannot be downloaded: disk is full"),
    ],
)
def test_every_refusal_of_the_hub_is_one_clear_line(
    raised: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*args: Any, **how: Any) -> str:
        raise raised()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(SourceError, match=message):
        hub.download("hf://org/tiny@v9")


@pytest.mark.parametrize("uri", ["hf://", "hf://a/b/c", "hf://org/x@", "hf:// org/x", "hf://../x"])
def test_a_malformed_uri_says_how_to_write_one(uri: str) -> None:
    with pytest.raises(SourceError, match=r"hub (URI; write hf://ORG/NAME|repository)"):
        hub.download(uri)
