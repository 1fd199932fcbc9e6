"""Codes are told from numbers by names, formats and config.json, and never merged as numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergeops.checkpoint import (
    is_beside_numbers,
    open_checkpoint,
    quantisation_of,
    recognise,
    without_quantisation,
)
from mergeops.errors import SourceError

Q = "model.layers.0.self_attn.q_proj"
PLAIN = {f"{Q}.weight": "BF16", "model.norm.weight": "BF16"}

# What the libraries write for one layer: bitsandbytes 0.50, torchao 0.18, compressed-tensors 0.20,
# gptqmodel 7.7 and transformers 5.24.
WRITTEN: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "bitsandbytes-nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {
            f"{Q}.weight": "U8",
            f"{Q}.weight.absmax": "F32",
            f"{Q}.weight.quant_map": "F32",
            f"{Q}.weight.quant_state.bitsandbytes__nf4": "U8",
        },
    ),
    "bitsandbytes-fp4": (
        {"quant_method": "bitsandbytes", "bnb_4bit_quant_storage": "bfloat16"},
        {f"{Q}.weight": "BF16", f"{Q}.weight.quant_state.bitsandbytes__fp4": "U8"},
    ),
    "bitsandbytes-int8": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {f"{Q}.weight": "I8", f"{Q}.SCB": "F32", f"{Q}.weight_format": "U8"},
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4},
        {f"{Q}.qweight": "I32", f"{Q}.qzeros": "I32", f"{Q}.scales": "F16", f"{Q}.g_idx": "I32"},
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4},
        {f"{Q}.qweight": "I32", f"{Q}.qzeros": "I32", f"{Q}.scales": "F16"},
    ),
    "torchao": (
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
        {f"{Q}._weight_qdata": "I8", f"{Q}._weight_scale": "F32"},
    ),
    "compressed-tensors-pack-quantized": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
        },
        {f"{Q}.weight_packed": "I32", f"{Q}.weight_scale": "BF16", f"{Q}.weight_shape": "I64"},
    ),
    "mxfp6": (
        {"quant_method": "compressed-tensors", "format": "mxfp6-pack-quantized"},
        {f"{Q}.weight_packed": "U8", f"{Q}.weight_scale": "U8"},
    ),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
        {f"{Q}.weight": "I8", f"{Q}.weight_scale": "BF16"},
    ),
    "modelopt-nvfp4": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {f"{Q}.weight": "U8", f"{Q}.weight_scale": "F8_E4M3", f"{Q}.weight_scale_2": "F32"},
    ),
    "hqq": ({"quant_method": "hqq"}, {f"{Q}.W_q": "U8", f"{Q}.scale": "F16"}),
    "quanto": ({}, {f"{Q}.weight._data": "I8", f"{Q}.weight._scale": "BF16"}),
    "exl2": ({"quant_method": "exl2"}, {f"{Q}.q_weight": "I32", f"{Q}.q_invperm": "I16"}),
    "exl3": ({"quant_method": "exl3"}, {f"{Q}.trellis": "I16", f"{Q}.suh": "F16"}),
    "spqr": ({"quant_method": "spqr"}, {f"{Q}.dense_weights": "I64", f"{Q}.in_perm": "I64"}),
    "mlx": ({}, {f"{Q}.weight": "U32", f"{Q}.scales": "BF16", f"{Q}.biases": "BF16"}),
    "bitnet": ({"quant_method": "bitnet"}, {f"{Q}.weight": "U8", f"{Q}.weight_scale": "BF16"}),
    "whole-numbers": ({}, {f"{Q}.weight": "I8", f"{Q}.weight_scales": "F16"}),
    "aqlm": ({"quant_method": "aqlm"}, {f"{Q}.codes": "I16", f"{Q}.codebooks": "F16"}),
    "fp8-without-scales": ({}, {f"{Q}.weight": "F8_E4M3"}),
    "scales-left": ({}, {f"{Q}.weight": "BF16", f"{Q}.weight_scale_inv": "F32"}),
}
READ: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "fp8": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {f"{Q}.weight": "F8_E4M3", f"{Q}.weight_scale_inv": "F32"},
    ),
    "nvfp4": (
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
        {
            f"{Q}.weight_packed": "U8",
            f"{Q}.weight_scale": "F8_E4M3",
            f"{Q}.weight_global_scale": "F32",
        },
    ),
    "mxfp4": (
        {"quant_method": "mxfp4"},
        {
            "model.layers.0.mlp.experts.down_proj_blocks": "U8",
            "model.layers.0.mlp.experts.down_proj_scales": "U8",
        },
    ),
}


@pytest.mark.parametrize("scheme", [*WRITTEN, *READ])
def test_every_scheme_is_recognised_with_and_without_its_config(scheme: str) -> None:
    said, dtypes = (WRITTEN | READ)[scheme]
    found = recognise({"quantization_config": said}, {**dtypes, "model.norm.weight": "BF16"})
    assert found is not None
    assert found.scheme == scheme
    assert found.is_readable == (scheme in READ)
    bare = recognise({}, dtypes)
    if scheme == "mxfp6":
        return  # Its shapes, which opening looks at, tell it from mxfp4.
    if scheme == "aqlm":
        # Whole numbers that nothing speaks of may be buffers; a merge copies them or refuses.
        assert bare is None
    else:
        assert bare is not None
        assert bare.is_readable == found.is_readable


@pytest.mark.parametrize("scheme", [*WRITTEN, *READ])
def test_a_config_that_says_quantised_over_plain_weights_is_no_quantisation(scheme: str) -> None:
    said, _ = (WRITTEN | READ)[scheme]
    assert recognise({"quantization_config": said}, PLAIN) is None


def test_the_page_of_formats_says_what_happens_to_each_scheme() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.partition("## Quantised checkpoints")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \|.*\| (read|refused)", section, re.MULTILINE)
    fates = {scheme: fate for names, fate in rows for scheme in re.findall(r"`([\w-]+)`", names)}
    assert fates == {**dict.fromkeys(WRITTEN, "refused"), **dict.fromkeys(READ, "read")}


@pytest.mark.parametrize(
    "inside", [("text_config",), ("language_config",), ("thinker_config", "text_config")]
)
def test_what_a_nested_config_says_counts(inside: tuple[str, ...]) -> None:
    said = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    config: dict[str, Any] = {"quantization_config": said}
    for key in reversed(inside):
        config = {key: config}
    found = recognise(config, {f"{Q}.weight": "I8"})
    assert found is not None
    assert found.told == "compressed-tensors"


@pytest.mark.parametrize(
    "others",
    [
        {"up.weight_packed": "I32", "up.weight_scale": "BF16", "up.weight_shape": "I64"},
        {"up.weight": "I8", "up.weight_scale": "BF16"},
    ],
)
def test_groups_of_which_one_is_not_read_are_not_read(others: dict[str, str]) -> None:
    said = {"quant_method": "compressed-tensors", "format": "mixed-precision"}
    dtypes = {f"{Q}.weight": "F8_E4M3", f"{Q}.weight_scale": "BF16", **others}
    found = recognise({"quantization_config": said}, dtypes)
    assert found is not None
    assert not found.is_readable
    assert "compressed-tensors" in found.told


def test_a_table_of_whole_numbers_is_no_quantisation() -> None:
    assert recognise({}, {**PLAIN, "attn.bias": "U8", "position_ids": "I64"}) is None


def test_the_word_of_mlx_is_dropped_with_the_others() -> None:
    said = {"group_size": 64, "bits": 4}
    config = {"hidden_size": 8, "text_config": {"quantization": said}, "quantization": said}
    assert without_quantisation(config) == {"hidden_size": 8, "text_config": {}}
    found = recognise(config, WRITTEN["mlx"][1])
    assert found is not None
    assert found.told == "mlx, 4 bits"


def test_scales_of_what_flows_through_a_model_are_told_from_parameters() -> None:
    layer = "model.layers.0"
    for name in ("self_attn.k_scale", "mlp.up_proj.input_scale", "experts.down_proj_input_scale"):
        assert is_beside_numbers(f"{layer}.{name}")
    # Of Gemma 3n; and a norm's.
    for name in ("altup.correct_output_scale", "norm.scale", "q_proj.weight_scale"):
        assert not is_beside_numbers(f"{layer}.{name}")


def test_plain_weights_in_a_rotated_basis_are_no_plain_weights() -> None:
    said = {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}}
    found = recognise({"quantization_config": said}, PLAIN)
    assert found is not None
    assert "rotated basis" in found.told


def test_without_any_tensor_the_config_decides() -> None:
    found = recognise({"quantization_config": {"quant_method": "gptq", "bits": 4}}, {})
    assert found is not None
    assert found.told == "gptq, 4 bits"
    for said in (READ["fp8"][0], READ["nvfp4"][0], READ["mxfp4"][0]):
        found = recognise({"quantization_config": said}, {})
        assert found is not None
        assert found.is_readable


def test_names_alone_are_enough_where_formats_are_not_known() -> None:
    for scheme in ("bitsandbytes-nf4", "gptq", "torchao", "compressed-tensors-pack-quantized"):
        said, dtypes = WRITTEN[scheme]
        found = recognise({"quantization_config": said}, dict.fromkeys(dtypes, ""))
        assert found is not None
        assert found.scheme == scheme
    for said, dtypes in READ.values():
        found = recognise({"quantization_config": said}, dict.fromkeys(dtypes, ""))
        assert found is not None
        assert found.is_readable


def test_codes_are_refused_when_a_checkpoint_is_opened(tmp_path: Path) -> None:
    save_file(
        {f"{Q}.qweight": torch.zeros(2, 2, dtype=torch.int32), "norm": torch.ones(2)},
        tmp_path / "model.safetensors",
    )
    said = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(SourceError, match=r"is quantised, gptq, 4 bits: .*16-bit model that it"):
        open_checkpoint(tmp_path)
    found = quantisation_of(tmp_path)
    assert found is not None
    assert found.scheme == "gptq"
