"""The random source: as far from the base as the real one, in another direction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeops.checkpoint import open_checkpoint, weights_sha256
from mergeops.checkpoint.reader import CheckpointReader, read_tensor
from mergeops.errors import MergeError
from mergeops.promotion.random_source import noise_like, write_random_source

Make = Callable[..., Path]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(path)
    with CheckpointReader(checkpoint) as reader:
        return {name: read_tensor(reader, name).clone() for name in checkpoint.tensors}


@pytest.fixture(scope="module")
def pair(tiny_llama: Make) -> tuple[Path, Path]:
    base = tiny_llama(seed=0)
    return base, tiny_llama(like=base, seed=1)


def test_every_tensor_is_as_far_from_the_base_as_the_sources(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, source = pair
    made = write_random_source(source, [base], tmp_path / "noise", key="0")
    assert made.kept == ()
    before, real, noise = tensors(base), tensors(source), tensors(made.path)
    assert noise.keys() == real.keys()
    for name, start in before.items():
        wanted, got = (real[name] - start).flatten(), (noise[name] - start).flatten()
        assert float(got.norm()) == pytest.approx(float(wanted.norm()), rel=1e-4)
        if wanted.numel() >= 1000:
            assert abs(torch.cosine_similarity(wanted, got, dim=0)) < 0.2


def test_it_loads_as_a_model_and_is_the_same_every_time(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, source = pair
    first = write_random_source(source, [base], tmp_path / "a", key="0").path
    AutoModelForCausalLM.from_pretrained(first)
    AutoTokenizer.from_pretrained(first)
    again = write_random_source(source, [base], tmp_path / "b", key="0").path
    other = write_random_source(source, [base], tmp_path / "c", key="1").path
    assert weights_sha256(first) == weights_sha256(again) != weights_sha256(other)
    stamp = (first / "random_source.json").stat().st_mtime_ns
    write_random_source(source, [base], tmp_path / "a", key="0")
    assert (first / "random_source.json").stat().st_mtime_ns == stamp


def test_without_a_base_the_mean_of_the_other_sources_takes_its_place(
    pair: tuple[Path, Path], tiny_llama: Make, tmp_path: Path
) -> None:
    base, source = pair
    third = tiny_llama(like=base, seed=2)
    made = write_random_source(source, [base, third], tmp_path / "noise", key="0")
    real, noise = tensors(source), tensors(made.path)
    for name, tensor in tensors(base).items():
        mean = (tensor + tensors(third)[name]) / 2
        got, wanted = float((noise[name] - mean).norm()), float((real[name] - mean).norm())
        assert got == pytest.approx(wanted, rel=1e-4)


def test_a_tensor_without_counterpart_is_kept_and_named(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, source = pair
    smaller = tmp_path / "smaller"
    smaller.mkdir()
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:10].clone()
    save_file(weights, smaller / "model.safetensors")
    made = write_random_source(source, [smaller], tmp_path / "noise", key="0")
    assert made.kept == ("model.embed_tokens.weight",)
    name = made.kept[0]
    assert torch.equal(tensors(made.path)[name], tensors(source)[name])


def test_a_source_that_does_not_differ_gets_no_noise() -> None:
    same = torch.ones(3, 4)
    assert torch.equal(noise_like(same, same.clone(), "k"), same)
    half = noise_like(torch.ones(8, dtype=torch.bfloat16), torch.zeros(8), "k")
    assert half.dtype == torch.bfloat16


def test_a_place_that_cannot_be_written_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MergeError, match="file/noise cannot be written"):
        write_random_source(pair[1], [pair[0]], tmp_path / "file" / "noise", key="0")
