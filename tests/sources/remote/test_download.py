"""Downloads: only what is needed, whole or not at all, once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mergeops.errors import SourceError
from mergeops.sources import contents
from mergeops.sources.remote.directory import LocalDirectory, RemoteDirectory, read_json
from mergeops.sources.remote.download import fetch


class Repository(LocalArtifactRepository):  # type: ignore[misc]
    """A real artifact repository that is read as if it were far away."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.as_uri())
        self.delivered: list[str] = []
        self.cuts: set[str] = set()

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        super()._download_file(remote_file_path, local_path)
        self.delivered.append(Path(remote_file_path).name)
        if Path(remote_file_path).name in self.cuts:
            with open(local_path, "r+b") as file:
                file.truncate(10)


@pytest.fixture
def far(full_and_adapter: tuple[Path, Path], tmp_path: Path) -> RemoteDirectory:
    folder = tmp_path / "far"
    shutil.copytree(full_and_adapter[0], folder / "artifacts" / "checkpoint-2")
    for name in ("optimizer.pt", "training_args.bin", "python_model.pkl", "evil.py"):
        (folder / "artifacts" / "checkpoint-2" / name).write_bytes(b"boom")
    repository = Repository(folder)
    return RemoteDirectory(repository, "s3://user:secret@bucket/far").inside(
        "artifacts/checkpoint-2"
    )


def test_only_what_a_merge_reads_arrives(far: RemoteDirectory, tmp_path: Path) -> None:
    there = fetch(far, tmp_path / "cache")
    assert {p.name for p in there.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
        *("tokenizer_config.json", "chat_template.jinja", "mergeops-download.json"),
    }
    original = tmp_path / "far/artifacts/checkpoint-2/model.safetensors"
    assert (there / "model.safetensors").read_bytes() == original.read_bytes()


def test_a_second_fetch_downloads_nothing(far: RemoteDirectory, tmp_path: Path) -> None:
    first = fetch(far, tmp_path / "cache")
    count = len(far.repository.delivered)
    assert fetch(far, tmp_path / "cache") == first
    assert len(far.repository.delivered) == count


def test_an_interrupted_download_goes_on_where_it_was(far: RemoteDirectory, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if len(far.repository.delivered) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(far, tmp_path / "cache", interrupt)
    (folder,) = (p for p in (tmp_path / "cache/downloads").iterdir() if p.is_dir())
    assert not (folder / "mergeops-download.json").exists()
    fetch(far, tmp_path / "cache")
    assert len(far.repository.delivered) == len(set(far.repository.delivered)) == 6


def test_a_file_that_arrives_cut_off_is_refused_and_fetched_again(
    far: RemoteDirectory, tmp_path: Path
) -> None:
    far.repository.cuts.add("model.safetensors")
    with pytest.raises(
        SourceError, match=r"model.safetensors arrived with 10 bytes, the store list"
    ):
        fetch(far, tmp_path / "cache")
    far.repository.cuts.clear()
    contents.check_whole(LocalDirectory(fetch(far, tmp_path / "cache")), "full")


def test_another_content_is_another_download(far: RemoteDirectory, tmp_path: Path) -> None:
    first = fetch(far, tmp_path / "cache")
    (tmp_path / "far/artifacts/checkpoint-2/README.md").write_text("# new")
    second = fetch(far, tmp_path / "cache")
    assert second != first
    assert (second / "README.md").read_text() == "# new"


def test_progress_reaches_the_total(far: RemoteDirectory, tmp_path: Path) -> None:
    ticks: list[tuple[str, int, int]] = []
    fetch(far, tmp_path / "cache", lambda *tick: ticks.append(tick))
    done = [tick[1] for tick in ticks]
    assert done == sorted(done)
    assert ticks[-1][1] == ticks[-1][2] > 100_000


def test_credentials_in_a_uri_are_shown_to_nobody(far: RemoteDirectory, tmp_path: Path) -> None:
    assert far.shown == "s3://bucket/far/artifacts/checkpoint-2"
    marker = fetch(far, tmp_path / "cache") / "mergeops-download.json"
    assert "secret" not in marker.read_text()


def test_a_store_that_lists_a_foreign_path_is_not_followed(
    far: RemoteDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.entities import FileInfo

    listing = [FileInfo("artifacts/checkpoint-2/..", False, 3)]
    monkeypatch.setattr(far.repository, "list_artifacts", lambda path: listing)
    with pytest.raises(
        SourceError, match=r"lists a file named 'artifacts/checkpoint-2/..'; refused"
    ):
        far.entries()


def test_a_missing_shard_is_seen_in_the_listing(far: RemoteDirectory, tmp_path: Path) -> None:
    folder = tmp_path / "far/artifacts/checkpoint-2"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index: dict[str, Any] = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    contents.check_whole(far, "full")
    index["weight_map"]["b"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        SourceError, match="model-00002-of-00002.safetensors is missing, but .*; copy"
    ):
        contents.check_whole(far, "full")
    del index["weight_map"]["b"]
    index["metadata"] = {"total_size": 10**9}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="is truncated: its weights have .* bytes, .* 1000000000"):
        contents.check_whole(far, "full")


def test_codes_are_recognised_before_they_are_downloaded(
    far: RemoteDirectory, tmp_path: Path
) -> None:
    folder = tmp_path / "far/artifacts/checkpoint-2"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    file = "model-00001-of-00001.safetensors"
    said = {"quant_method": "gptq", "bits": 4}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    index = folder / "model.safetensors.index.json"
    # A config that was left over says nothing of plain weights.
    index.write_text(json.dumps({"weight_map": {"model.layers.0.q.weight": file}}))
    contents.check_whole(far, "full")
    index.write_text(json.dumps({"weight_map": {"model.layers.0.q.qweight": file}}))
    with pytest.raises(SourceError, match="is quantised, gptq, 4 bits: .*take the 16-bit model"):
        contents.check_whole(far, "full")
    assert file not in far.repository.delivered


def test_what_a_store_raises_is_one_line(
    far: RemoteDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise OSError("bucket\nis gone")

    monkeypatch.setattr(far.repository, "list_artifacts", fail)
    with pytest.raises(SourceError, match=r"checkpoint-2 cannot be listed: bucket is gone"):
        far.entries()

    def lacks(path: str) -> None:
        raise ModuleNotFoundError("No module named 'boto3'", name="boto3")

    monkeypatch.setattr(far.repository, "list_artifacts", lacks)
    with pytest.raises(SourceError, match="needs the package boto3; pip install boto3"):
        far.entries()


def test_small_files_are_read_in_place(far: RemoteDirectory) -> None:
    assert (read_json(far, "config.json") or {})["model_type"] == "llama"
    assert read_json(far, "nothing.json") is None


def test_json_that_is_none_is_refused(far: RemoteDirectory, tmp_path: Path) -> None:
    folder = tmp_path / "far/artifacts/checkpoint-2"
    (folder / "config.json").write_text("{")
    with pytest.raises(SourceError, match="config.json is not JSON"):
        read_json(far, "config.json")
    (folder / "config.json").write_text("[]")
    with pytest.raises(SourceError, match="config.json is no JSON object"):
        read_json(far, "config.json")


def test_a_huge_small_file_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(SourceError, match="config.json has 1073741824 bytes; at most 67108864"):
        read_json(LocalDirectory(tmp_path), "config.json")
