"""Local directories, and what is said of those that are no checkpoint."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergeops.checkpoint import adapter_sha256, weights_sha256
from mergeops.errors import SourceError
from mergeops.sources.resolution import resolve_uri
from mergeops.sources.source import Source


def find(uri: str | Path, cache: Path, base: str | None = None) -> Source:
    return resolve_uri(str(uri), cache_dir=cache / "cache", base=base)


def test_a_full_checkpoint_is_found_where_it_is(
    full_and_adapter: tuple[Path, Path], tmp_path: Path
) -> None:
    full, _ = full_and_adapter
    source = find(full, tmp_path)
    assert source == Source("source", str(full), full, weights_sha256(full))
    assert not source.is_adapter


def test_a_sharded_checkpoint_is_full(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    sharded = tiny_llama(max_shard_size="30KB")
    assert not (sharded / "model.safetensors").exists()
    assert find(sharded, tmp_path).sha256 == weights_sha256(sharded)


def test_relative_home_and_file_uris_mean_the_same_directory(
    full_and_adapter: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(full_and_adapter[0], tmp_path / "a b")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in ("a b", "./a b", "~/a b", f"file://{tmp_path}/a%20b", str(tmp_path / "a b")):
        assert find(uri, tmp_path).path == tmp_path / "a b"


def test_an_adapter_comes_with_its_base_and_a_digest_of_both(
    full_and_adapter: tuple[Path, Path], tmp_path: Path
) -> None:
    full, adapter = full_and_adapter
    source = find(adapter, tmp_path)
    assert source.is_adapter
    assert (source.path, source.adapter_base) == (adapter, full)
    assert source.sha256 == adapter_sha256(adapter, weights_sha256(full))


def test_where_nothing_is_the_message_lists_what_a_source_may_be(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"there is no directory .*/gone; a source is a dir.*hf://"
    ):
        find(tmp_path / "gone", tmp_path)


def test_a_relative_path_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=rf"{tmp_path}/gone \(from gone\)"):
        find("gone", tmp_path)


def test_a_file_is_no_directory(full_and_adapter: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="config.json is a file; name the directory"):
        find(full_and_adapter[0] / "config.json", tmp_path)


@pytest.mark.parametrize("kind", ["one file", "shards"])
def test_pickled_weights_are_converted_once_and_are_the_same_model(
    full_and_adapter: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    import torch
    from safetensors.torch import load_file

    original = load_file(full_and_adapter[0] / "model.safetensors")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((full_and_adapter[0] / "config.json").read_text())
    if kind == "one file":
        # The head is the embeddings, once more; two rows of one storage are two tensors.
        embeddings = original["model.embed_tokens.weight"]
        aliases = {"z_head": embeddings, "z_row": embeddings[1], "z_other": embeddings[2]}
        torch.save(original | aliases, pickled / "pytorch_model.bin")
        original |= {"z_row": embeddings[1], "z_other": embeddings[2]}
    else:
        parts = [dict(list(original.items())[i::2]) for i in (0, 1)]
        names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
        for part, name in zip(parts, names, strict=True):
            torch.save(part, pickled / name)
        index = {t: name for part, name in zip(parts, names, strict=True) for t in part}
        (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    found = find(pickled, tmp_path)
    read = {n: t for f in found.path.glob("*.safetensors") for n, t in load_file(f).items()}
    assert read.keys() == original.keys()
    assert all(torch.equal(read[name], original[name]) for name in original)
    made = [file.stat().st_mtime_ns for file in found.path.glob("*.safetensors")]
    assert find(pickled, tmp_path) == found
    assert [file.stat().st_mtime_ns for file in found.path.glob("*.safetensors")] == made


def test_a_pickled_adapter_is_converted(
    full_and_adapter: tuple[Path, Path], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    pickled = tmp_path / "pickled"
    pickled.mkdir()
    config = (full_and_adapter[1] / "adapter_config.json").read_text()
    (pickled / "adapter_config.json").write_text(config)
    tensors = load_file(full_and_adapter[1] / "adapter_model.safetensors")
    torch.save(tensors, pickled / "adapter_model.bin")
    found, original = find(pickled, tmp_path), find(full_and_adapter[1], tmp_path)
    assert found.adapter_base == original.adapter_base
    assert load_file(found.path / "adapter_model.safetensors").keys() == tensors.keys()


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    import torch

    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save({"w": torch.zeros(64)}, folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_that_change_behind_their_time_are_converted_again(
    pickled: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    file = pickled / "pytorch_model.bin"
    seen = file.stat()
    assert load_file(find(pickled, tmp_path).path / "model.safetensors")["w"].sum() == 0
    torch.save({"w": torch.ones(64)}, file)
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert file.stat().st_size == seen.st_size
    assert load_file(find(pickled, tmp_path).path / "model.safetensors")["w"].sum() == 64


def test_pickled_weights_that_change_while_they_are_converted_are_refused_and_not_kept(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    load = torch.load

    def slow(file: Path, **named: Any) -> Any:
        content = {name: tensor.clone() for name, tensor in load(file, **named).items()}
        torch.save({"w": torch.ones(64)}, file)
        return content

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", slow)
        with pytest.raises(SourceError, match="pytorch_model.bin changed while it was converted"):
            find(pickled, tmp_path)
    assert load_file(find(pickled, tmp_path).path / "model.safetensors")["w"].sum() == 64


def test_files_beside_pickled_weights_come_and_go_without_a_new_conversion(
    pickled: Path, tmp_path: Path
) -> None:
    from mergeops.checkpoint.pickled import converted

    folder = converted(pickled, tmp_path)
    made = (folder / "model.safetensors").stat()
    (pickled / "tokenizer.json").write_text("{}")
    (pickled / "model.safetensors.index.json").write_text("{}")
    assert converted(pickled, tmp_path) == folder
    assert (folder / "tokenizer.json").read_text() == "{}"
    (pickled / "tokenizer.json").unlink()
    converted(pickled, tmp_path)
    assert not (folder / "tokenizer.json").is_symlink()
    assert (folder / "model.safetensors").stat() == made


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("evil",))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "pytorch_model.bin cannot be read as tensors alone"),
        (Evil(), "pytorch_model.bin cannot be read as tensors alone, and other objects are never"),
        ({"state_dict": {}}, "pytorch_model.bin is no dict of tensors; save the model again"),
    ],
)
def test_pickled_weights_that_are_more_than_tensors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, match: str
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    if isinstance(content, bytes):
        (pickled / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, pickled / "pytorch_model.bin")
    with pytest.raises(SourceError, match=match):
        find(pickled, tmp_path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_tensors_below_a_key_are_taken_out_as_the_message_says(pickled: Path, key: str) -> None:
    import torch

    file = pickled / "pytorch_model.bin"
    tensors = torch.load(file, weights_only=True)
    torch.save({key: tensors, "epoch": 3}, file)
    with pytest.raises(SourceError, match=f"no dict of tensors, which are below '{key}'") as said:
        find(pickled, pickled.parent)
    command = str(said.value).partition("alone: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    find(pickled, pickled.parent)
    taken = torch.load(file, weights_only=True)
    assert taken.keys() == tensors.keys()
    assert all(taken[name].equal(tensor) for name, tensor in tensors.items())


def test_a_compressed_archive_is_not_read_as_if_it_were_not(pickled: Path, tmp_path: Path) -> None:
    file = pickled / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(SourceError, match="is compressed, which torch never writes"):
        find(pickled, tmp_path)


def test_a_full_disk_is_not_the_pickles_fault(pickled: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(SourceError, match="has pickled weights, which are .*: File too large"):
            find(pickled, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_pickled_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"w": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="pytorch_model-00001-of-00001.bin is missing, but"):
        find(tmp_path, tmp_path / "cache")


def test_of_an_output_directory_a_checkpoint_is_to_be_named(tmp_path: Path) -> None:
    for n in (2, 10, 4):
        (tmp_path / f"checkpoint-{n}").mkdir()
    wanted = "with checkpoint-2, checkpoint-4, checkpoint-10; name one of them: .*/checkpoint-10$"
    with pytest.raises(SourceError, match=wanted):
        find(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "is empty or does not exist"),
        (["config.json"], "config.json but no model.safetensors; it has config.json: the save did"),
        (
            ["adapter_config.json"],
            "no adapter_model.safetensors; it has adapter_config.json: the save",
        ),
        (["model.safetensors"], "weights but no config.json; copy the config.json"),
        (["config.json", "model.fp16.safetensors"], "a variant of model.safetensors.* rename the"),
        (["consolidated.safetensors", "params.json"], "Mistral's own layout .* same repository"),
        (["a.txt", "b.bin"], "holds no checkpoint.*it has a.txt, b.bin"),
        (["b.gguf"], "b.gguf cannot be read as a GGUF file"),
        (["config.json", "b.gguf"], "b.gguf cannot be read as a GGUF file"),
        (["a.gguf", "b.gguf"], r"has 2 GGUF files \(a.gguf, b.gguf\); name the one that is meant"),
    ],
)
def test_what_is_there_instead_is_named(files: list[str], message: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for name in files:
        (place / name).write_text("{}")
    with pytest.raises(SourceError, match=message):
        find(place, tmp_path)


def test_an_adapter_without_a_reachable_base_says_what_to_set(
    fabricate_adapter: Callable[[str | None], Path], tmp_path: Path
) -> None:
    adapter = fabricate_adapter("meta/llama")
    wanted = "trained on meta/llama, which is not reachable from here; set sources.source.base"
    with pytest.raises(SourceError, match=wanted):
        find(adapter, tmp_path)
    with pytest.raises(
        SourceError, match="does not say which model it was trained on; set sources"
    ):
        find(fabricate_adapter(None), tmp_path)


def test_the_base_that_the_recipe_gives_an_adapter_wins(
    full_and_adapter: tuple[Path, Path],
    fabricate_adapter: Callable[[str | None], Path],
    tmp_path: Path,
) -> None:
    full, _ = full_and_adapter
    source = find(fabricate_adapter("meta/llama"), tmp_path, base=str(full))
    assert source.adapter_base == full


def test_an_adapter_is_no_base(full_and_adapter: tuple[Path, Path], tmp_path: Path) -> None:
    _, adapter = full_and_adapter
    with pytest.raises(
        SourceError, match="sources.source.base is .*a LoRA adapter; a base must be"
    ):
        find(adapter, tmp_path, base=str(adapter))


@pytest.mark.parametrize("uri", ["htp://x/y", "s3x://bucket/path"])
def test_an_unknown_scheme_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match="has a scheme that is not known; a source is a directory"
    ):
        find(uri, tmp_path)


def test_a_file_uri_with_a_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"names the host 'tmp'; write file:///PATH"):
        find("file://tmp/model", tmp_path)


def test_importing_sources_loads_neither_mlflow_nor_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, mergeops.sources, mergeops.adoption.adoption, mergeops.adoption.recipe_file;"
    )
    code += (
        "print(sorted({'mlflow', 'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("content", ["garbage", "cut", "list", "object", "number", "sparse"])
def test_a_damaged_pickle_is_one_line_and_runs_nothing(pickled: Path, content: str) -> None:
    import torch

    file = pickled / "pytorch_model.bin"
    whole = file.read_bytes()
    if content == "garbage":
        file.write_bytes(b"\x80\x02" + bytes(range(256)))
    elif content == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif content == "list":
        torch.save([torch.zeros(2)], file)
    elif content == "object":
        torch.save({"w": Path("x")}, file)
    elif content == "number":
        torch.save({3: torch.zeros(2)}, file)
    else:
        torch.save({"w": torch.zeros(4, 4).to_sparse()}, file)
    with pytest.raises(SourceError, match=r"pytorch_model.bin (cannot be read as|is no dict of)"):
        find(pickled, pickled.parent)


def test_a_pickle_of_a_few_bytes_that_describes_a_terabyte_is_refused(pickled: Path) -> None:
    import torch

    torch.save({"w": torch.zeros(1).expand(2**38)}, pickled / "pytorch_model.bin")
    with pytest.raises(SourceError, match="describes 1099511627776 bytes of tensors, more than 8"):
        find(pickled, pickled.parent)


def test_every_mutation_of_a_pickle_is_read_or_refused(pickled: Path) -> None:
    import random

    from mergeops.checkpoint.pickled import _load

    file = pickled / "pytorch_model.bin"
    whole = file.read_bytes()
    random_source = random.Random(7)
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(random_source.randint(1, 4)):
            changed[random_source.randrange(len(changed))] = random_source.randrange(256)
        file.write_bytes(changed)
        try:
            _load(file)
        except SourceError as error:
            assert "\n" not in str(error)


def test_a_small_file_that_is_a_link_out_of_its_directory_is_refused(
    full_and_adapter: tuple[Path, Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(full_and_adapter[0], tmp_path / "model"))
    (tmp_path / "id_rsa").write_text("secret")
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.jinja").symlink_to("../id_rsa")
    with pytest.raises(SourceError, match=r"chat_template.jinja is a link to .*/id_rsa, outside"):
        find(model, tmp_path)


def test_links_inside_a_directory_and_to_files_named_by_their_content_are_followed(
    full_and_adapter: tuple[Path, Path], tmp_path: Path
) -> None:
    # As the hub's cache keeps a snapshot.
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(full_and_adapter[0].iterdir())):
        blob = blobs / f"{i:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    (snapshot / "vocab.txt").symlink_to("config.json")
    assert find(snapshot, tmp_path).path == snapshot
    (tmp_path / "name").symlink_to(snapshot)
    assert find(tmp_path / "name", tmp_path).sha256 == weights_sha256(snapshot)


def test_weights_may_lie_on_another_disk(
    full_and_adapter: tuple[Path, Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(full_and_adapter[0], tmp_path / "model"))
    (model / "model.safetensors").rename(tmp_path / "large.safetensors")
    (model / "model.safetensors").symlink_to(tmp_path / "large.safetensors")
    assert find(model, tmp_path).sha256 == weights_sha256(full_and_adapter[0])


def test_converted_weights_are_on_the_disk_before_they_are_marked(
    pickled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeops.checkpoint import conversions as module

    seen: list[tuple[str, bool]] = []

    def synced(path: Path) -> None:
        seen.append((path.name, any(pickled.parent.rglob(module.DONE))))

    monkeypatch.setattr(module, "sync_file", synced)
    monkeypatch.setattr(module, "sync_directory", lambda path: synced(path))
    find(pickled, pickled.parent)
    folder = seen[-1][0]
    assert seen == [("model.safetensors", False), (folder, False), (folder, True)]
