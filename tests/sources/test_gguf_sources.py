"""A GGUF file is a source, a base, and what an adapter applies to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from support.gguf_writers import tiny_model, write_gguf

import mergeops
from mergeops.errors import SourceError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` as safetensors; ``q8`` with the same model in one GGUF file, and its other part."""
    place = tmp_path_factory.mktemp("gguf")
    model = tiny_model("Llama")
    model.bfloat16().save_pretrained(place / "base")
    (place / "q8").mkdir()
    write_gguf(model, place / "q8" / "tiny.Q8_0.gguf")
    (place / "q8" / "mmproj-tiny.gguf").write_bytes(b"not looked into")
    return place


def merged(recipe: dict[str, object], out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(out.parent)
    mergeops.merge(recipe, out)
    return out


@pytest.mark.parametrize("uri", ["q8", "q8/tiny.Q8_0.gguf"])
def test_a_file_is_averaged_with_16_bit_weights(
    uri: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {"a": {"uri": str(place / uri)}, "b": {"uri": str(place / "base")}}
    out = merged({"sources": sources, "method": "linear"}, tmp_path / "out", monkeypatch)
    found, plain = load_file(out / "model.safetensors"), load_file(place / "base/model.safetensors")
    assert found.keys() == plain.keys()
    name = "model.layers.0.mlp.up_proj.weight"
    blocks = gguf.quants.quantize(plain[name].float().numpy(), gguf.GGMLQuantizationType.Q8_0)
    numbers = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    mean = (torch.from_numpy(numbers).bfloat16().float() + plain[name].float()) / 2
    assert found[name].equal(mean.bfloat16())
    assert not list(place.glob("q8/*.safetensors"))


def test_an_adapter_applies_to_a_file(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    config = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "lora")
    source = {"uri": str(tmp_path / "lora"), "base": str(place / "q8" / "tiny.Q8_0.gguf")}
    recipe = {"sources": {"a": source}, "method": "passthrough"}
    out = merged(recipe, tmp_path / "out", monkeypatch)
    plain = merged(
        {"sources": {"a": {"uri": str(place / "q8")}}, "method": "passthrough"},
        tmp_path / "plain",
        monkeypatch,
    )
    found, before = (load_file(p / "model.safetensors") for p in (out, plain))
    differing = {name for name in found if not found[name].equal(before[name])}
    assert differing == {f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)}


def test_of_several_files_one_is_to_be_named(place: Path, tmp_path: Path) -> None:
    for name in ("tiny.Q4_0.gguf", "tiny.Q8_0.gguf"):
        (tmp_path / name).write_bytes((place / "q8" / "tiny.Q8_0.gguf").read_bytes())
    recipe = {"sources": {"a": {"uri": str(tmp_path)}}, "method": "passthrough"}
    with pytest.raises(SourceError, match=r"2 GGUF files \(tiny.Q4_0.gguf, tiny.Q8_0.gguf\); name"):
        mergeops.merge(recipe, tmp_path / "out")


def test_a_file_of_a_repository_is_read_without_its_other_weights(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, name = "a" * 40, "tiny.Q8_0.gguf"
    folder = tmp_path / "hub" / "models--org--tiny-GGUF"
    snapshot = folder / "snapshots" / commit
    for branch in ("main", "v1"):
        (folder / "refs" / branch).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / branch).write_text(commit)
    snapshot.mkdir(parents=True)
    for file in (name, "tiny.Q4_K_M.gguf"):
        (snapshot / file).write_bytes((place / "q8" / name).read_bytes())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked: list[tuple[str, str | None, list[str]]] = []
    real = huggingface_hub.snapshot_download

    def download(repository: str, **how: Any) -> str:
        asked.append((repository, how["revision"], how["allow_patterns"]))
        return str(real(repository, **how))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    expected = merged(one(place / "q8" / name), tmp_path / "expected", monkeypatch)
    for uri in (f"hf://org/tiny-GGUF/{name}", f"hf://org/tiny-GGUF@v1/{name}"):
        out = merged(one(uri), tmp_path / f"out-{len(asked)}", monkeypatch)
        weights = "model.safetensors"
        assert (out / weights).read_bytes() == (expected / weights).read_bytes()
    assert {(repository, at) for repository, at, _ in asked} == {
        ("org/tiny-GGUF", None),
        ("org/tiny-GGUF", "v1"),
    }
    assert all(name in files and "*.safetensors" not in files for *_, files in asked)


def one(uri: Path | str) -> dict[str, object]:
    return {"sources": {"a": {"uri": str(uri)}}, "method": "passthrough"}
