"""FP8, MXFP4 and NVFP4 checkpoints are merged as the numbers that their codes stand for."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from support.quantised_models import FILE, fp8_in_blocks, gpt_oss_in_mxfp4, rewritten

from mergeops.checkpoint import CheckpointReader, open_checkpoint, read_range, read_tensor
from mergeops.cli.main import cli
from mergeops.errors import SourceError

Q = "model.layers.0.self_attn.q_proj"
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def loaded(path: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """What transformers holds in memory of a checkpoint."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", **settings)
    return dict(model.state_dict())


def same_numbers(path: Path, expected: dict[str, torch.Tensor]) -> None:
    """Every tensor of the checkpoint, whole and in ranges, has the expected bits."""
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors.keys() == expected.keys()
    with CheckpointReader(checkpoint) as reader:
        for name, tensor in expected.items():
            found = read_tensor(reader, name)
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
            assert found.equal(tensor), name
            n = tensor.numel()
            for start, stop in ((0, 1), (n // 3, n // 2 + 1), (n - 1, n)):
                part = read_range(reader, name, start, stop)
                assert part.equal(tensor.reshape(-1)[start:stop]), (name, start, stop)


def run(tmp_path: Path, recipe: dict[str, Any], *, command: str = "merge") -> Any:
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    words = [command, str(tmp_path / "recipe.yaml")]
    words += [str(tmp_path / "out")] if command == "merge" else []
    return CliRunner().invoke(cli, words, catch_exceptions=False)


@pytest.mark.parametrize(
    ("block", "scale_name", "scale_dtype"),
    [
        ((32, 32), "weight_scale_inv", torch.float32),
        ((16, 32), "weight_scale_inv", torch.float8_e8m0fnu),
        ((64, 16), "qscale_weight", torch.float32),
    ],
)
def test_fp8_in_blocks_is_what_transformers_dequantises(
    tiny_llama: Callable[..., Path],
    tmp_path: Path,
    block: tuple[int, int],
    scale_name: str,
    scale_dtype: torch.dtype,
) -> None:
    from transformers import FineGrainedFP8Config

    model = tiny_llama(dtype="bfloat16", hidden=64)
    path = fp8_in_blocks(
        model, tmp_path / "fp8", block, scale_name=scale_name, scale_dtype=scale_dtype
    )
    config = FineGrainedFP8Config(dequantize=True, weight_block_size=block)
    same_numbers(path, loaded(path, quantization_config=config))


def test_experts_in_mxfp4_are_what_transformers_dequantises(tmp_path: Path) -> None:
    from transformers import Mxfp4Config

    path = gpt_oss_in_mxfp4(tmp_path / "oss")
    same_numbers(path, loaded(path, quantization_config=Mxfp4Config(dequantize=True)))


def test_blocks_have_the_size_that_the_config_names_where_they_do_not_divide_the_matrix(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    # 64 rows in blocks of 48: 48 and 16, not twice 32.
    model = tiny_llama(dtype="bfloat16", hidden=64)
    path = fp8_in_blocks(model, tmp_path / "fp8", (48, 48))
    stored = load_file(path / FILE)
    codes, scales = stored[f"{Q}.weight"].float(), stored[f"{Q}.weight_scale_inv"]
    at = (torch.arange(64) >= 48).long()
    expected = (codes * scales[at][:, at]).bfloat16()
    with CheckpointReader.open(path) as reader:
        assert read_tensor(reader, f"{Q}.weight").equal(expected)


def test_scales_of_a_channel_and_of_a_tensor_multiply_the_codes(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_llama(dtype="bfloat16")
    tensors = load_file(model / FILE)
    codes = {name: tensors[name].to(torch.float8_e4m3fn) for name in tensors if "_proj" in name}
    for form, scale in (
        ("channel", torch.arange(1, 33).view(32, 1).bfloat16() / 7),
        ("tensor", torch.tensor([0.3])),
        ("scalar", torch.tensor(0.3)),
    ):
        path = rewritten(
            model,
            tmp_path / form,
            {
                **tensors,
                f"{Q}.weight": codes[f"{Q}.weight"],
                f"{Q}.weight_scale": scale,
                f"{Q}.input_scale": torch.ones(1),
            },
            {"quant_method": "compressed-tensors", "format": "float-quantized"},
        )
        expected = (codes[f"{Q}.weight"].float() * scale.float()).bfloat16()
        same_numbers(path, {**tensors, f"{Q}.weight": expected})


@pytest.mark.parametrize("word", ["nvfp4", "mxfp4"])
def test_packed_codes_of_four_bits_stand_for_code_times_scale(
    tiny_llama: Callable[..., Path], tmp_path: Path, word: str
) -> None:
    model = tiny_llama(dtype="bfloat16", hidden=64)
    tensors = load_file(model / FILE)
    del tensors[f"{Q}.weight"]
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (64, 64), generator=generator)
    packed = (codes[:, 0::2] + 16 * codes[:, 1::2]).to(torch.uint8)
    values = torch.tensor(E2M1)[codes]
    if word == "nvfp4":
        scale = (torch.rand(64, 4, generator=generator) * 400 + 1).to(torch.float8_e4m3fn)
        whole = torch.tensor([731.5])
        beside = {f"{Q}.weight_scale": scale, f"{Q}.weight_global_scale": whole}
        expected = values * (scale.float() / whole).repeat_interleave(16, dim=1)
    else:
        exponents = torch.randint(110, 130, (64, 2), dtype=torch.uint8, generator=generator)
        beside = {f"{Q}.weight_scale": exponents}
        expected = values * torch.exp2(exponents.float() - 127).repeat_interleave(32, dim=1)
    path = rewritten(
        model,
        tmp_path / word,
        {**tensors, f"{Q}.weight_packed": packed, **beside},
        {"quant_method": "compressed-tensors", "format": f"{word}-pack-quantized"},
    )
    same_numbers(path, {**tensors, f"{Q}.weight": expected.bfloat16()})


def test_a_quantised_and_a_plain_source_merge_into_16_bits(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import FineGrainedFP8Config

    base = tiny_llama(dtype="bfloat16")
    a = fp8_in_blocks(tiny_llama(like=base, seed=1, dtype="bfloat16"), tmp_path / "a", (32, 32))
    b = tiny_llama(like=base, seed=2, dtype="bfloat16")
    done = run(tmp_path, {"sources": {"a": str(a), "b": str(b)}, "method": "linear"})
    assert done.exit_code == 0, done.output
    config = FineGrainedFP8Config(dequantize=True, weight_block_size=(32, 32))
    ours, theirs = loaded(a, quantization_config=config), loaded(b)
    merged = loaded(tmp_path / "out")
    for name, tensor in merged.items():
        mean = (ours[name].float() + theirs[name].float()) / 2
        assert tensor.equal(mean.bfloat16()), name
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in written
    assert "has a quantization_config; the merge is written in plain numbers" in done.output


def test_an_adapter_applies_to_the_numbers_of_a_quantised_base(
    tiny_llama: Callable[..., Path], tiny_lora: Callable[..., Path], tmp_path: Path
) -> None:
    plain = tiny_llama(dtype="bfloat16")
    adapter = tiny_lora(plain)
    base = fp8_in_blocks(plain, tmp_path / "base", (32, 32))
    numbers = tmp_path / "numbers"
    shutil.copytree(plain, numbers)
    with CheckpointReader.open(base) as reader:
        tensors = {name: read_tensor(reader, name) for name in open_checkpoint(base).tensors}
    save_file(tensors, numbers / FILE, metadata={"format": "pt"})
    merged = []
    for place in (base, numbers):
        source = {"uri": str(adapter), "base": str(place)}
        done = run(tmp_path, {"sources": {"a": source}, "method": "linear"})
        assert done.exit_code == 0, done.output
        merged.append(load_file(tmp_path / "out" / FILE))
        shutil.rmtree(tmp_path / "out")
    assert all(merged[0][name].equal(tensor) for name, tensor in merged[1].items())


def test_slices_of_quantised_models_are_plain_layers(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    a = fp8_in_blocks(tiny_llama(dtype="bfloat16"), tmp_path / "a", (32, 32))
    recipe = {
        "slices": [
            {"sources": [{"model": str(a), "layer_range": [0, 2]}]},
            {"sources": [{"model": str(a), "layer_range": [1, 2]}]},
        ],
        "merge_method": "passthrough",
    }
    done = run(tmp_path, recipe)
    assert done.exit_code == 0, done.output
    merged = load_file(tmp_path / "out" / FILE)
    name = f"{Q}.weight".replace("layers.0", "layers.1")
    with CheckpointReader.open(a) as reader:
        second = read_tensor(reader, name)
    assert merged[name.replace("layers.1", "layers.2")].equal(second)
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}


@pytest.mark.parametrize("command", ["merge", "inspect"])
@pytest.mark.parametrize("is_first", [True, False])
def test_codes_that_are_not_read_are_refused_before_anything_is_merged(
    tiny_llama: Callable[..., Path], tmp_path: Path, command: str, is_first: bool
) -> None:
    plain = tiny_llama(dtype="bfloat16")
    tensors = load_file(plain / FILE)
    weight = tensors.pop(f"{Q}.weight")
    tensors[f"{Q}._weight_qdata"] = weight.to(torch.int8)
    tensors[f"{Q}._weight_scale"] = torch.ones(32, 1)
    coded = rewritten(plain, tmp_path / "coded", tensors, {"quant_method": "torchao"})
    names = [str(coded), str(plain)] if is_first else [str(plain), str(coded)]
    # The remedy that a difference of names once led to is no way around it.
    recipe = {"sources": dict(zip("ab", names, strict=True)), "missing": "leave_out"}
    told = f"{coded} is quantised, torchao: its codes are no numbers that can be merged; take the"
    with pytest.raises(SourceError, match=re.escape(told)):
        run(tmp_path, {**recipe, "method": "linear"}, command=command)
    assert not (tmp_path / "out").exists()


def test_scales_that_do_not_fit_their_codes_are_refused(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    plain = tiny_llama(dtype="bfloat16")
    tensors = load_file(plain / FILE)
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"].to(torch.float8_e4m3fn)
    for name, beside, told in (
        ("shape", {f"{Q}.weight_scale": torch.ones(5, 3)}, "which do not fit each other"),
        (
            "zero",
            {f"{Q}.weight_scale": torch.ones(32, 1), f"{Q}.weight_zero_point": torch.ones(32, 1)},
            "has a weight_zero_point, which is not read",
        ),
        ("other", {f"{Q.replace('q_', 'k_')}.weight_scale": torch.ones(1)}, "no scale that fits"),
    ):
        path = rewritten(plain, tmp_path / name, {**tensors, **beside}, {"quant_method": "fp8"})
        with pytest.raises(SourceError, match=told):
            open_checkpoint(path)


def test_a_leftover_quantization_config_over_plain_weights_is_dropped(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_llama(dtype="bfloat16")
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    a = rewritten(base, tmp_path / "a", load_file(base / FILE), said)
    b = tiny_llama(like=base, seed=2, dtype="bfloat16")
    done = run(tmp_path, {"sources": {"a": str(a), "b": str(b)}, "method": "linear"})
    assert done.exit_code == 0, done.output
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    assert "has a quantization_config; the merge is written in plain numbers" in done.output
    assert loaded(tmp_path / "out").keys() == loaded(b).keys()


def test_scales_left_beside_plain_weights_are_refused_with_a_way_out_that_works(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    base = tiny_llama()
    tensors = load_file(base / FILE)
    left = {
        f"{name}_scale_inv": torch.ones(1, 1) for name in tensors if name.endswith("proj.weight")
    }
    a = rewritten(base, tmp_path / "a", {**tensors, **left}, {"quant_method": "fp8"})
    with pytest.raises(SourceError, match="whether that is applied to it alr.* save it with"):
        open_checkpoint(a)
    config = json.loads((a / "config.json").read_text())
    del config["quantization_config"]
    (a / "config.json").write_text(json.dumps(config))
    AutoModelForCausalLM.from_pretrained(a).save_pretrained(tmp_path / "new")
    b = tiny_llama(like=base, seed=2)
    sources = {"a": str(tmp_path / "new"), "b": str(b)}
    done = run(tmp_path, {"sources": sources, "method": "linear"})
    assert done.exit_code == 0, done.output
    assert loaded(tmp_path / "out").keys() == tensors.keys()
