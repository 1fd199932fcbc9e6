"""Quantised copies of tiny models, with the names, formats and configs that the libraries write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FILE = "model.safetensors"


def rewritten(model: Path, path: Path, tensors: dict[str, Any], said: dict[str, Any]) -> Path:
    """A copy of a model with other tensors, and a ``quantization_config``."""
    shutil.copytree(model, path)
    save_file(tensors, path / FILE, metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    return path


def fp8_in_blocks(
    model: Path,
    path: Path,
    block: tuple[int, int],
    *,
    scale_name: str = "weight_scale_inv",
    scale_dtype: torch.dtype = torch.float32,
) -> Path:
    """A copy whose projections are FP8 with a scale for each block, as DeepSeek publishes them."""
    tensors = {}
    for name, weight in load_file(model / FILE).items():
        tensors[name] = weight
        if "_proj" not in name:
            continue
        grid = [-(-side // step) for side, step in zip(weight.shape, block, strict=True)]
        codes, scales = torch.empty(weight.shape), torch.empty(grid)
        for i in range(grid[0]):
            for j in range(grid[1]):
                rows = slice(i * block[0], (i + 1) * block[0])
                columns = slice(j * block[1], (j + 1) * block[1])
                part = weight[rows, columns].float()
                scale = part.abs().max() / 448
                if scale_dtype != torch.float32:
                    scale = 2.0 ** torch.ceil(torch.log2(scale))
                scales[i, j] = scale
                codes[rows, columns] = part / scale
        tensors[name] = codes.to(torch.float8_e4m3fn)
        tensors[name.replace(".weight", f".{scale_name}")] = scales.to(scale_dtype)
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [*block]}
    return rewritten(model, path, tensors, said)


def gpt_oss_in_mxfp4(path: Path) -> Path:
    """A tiny GPT-OSS whose experts are random MXFP4 codes."""
    from transformers import GptOssConfig, GptOssForCausalLM

    generator = torch.Generator().manual_seed(1)
    config = GptOssConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=3,
        num_experts_per_tok=2,
        layer_types=["full_attention"],
    )
    plain = path.with_name(f"{path.name}-plain")
    model = GptOssForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1, generator=generator)
    model.bfloat16().save_pretrained(plain)
    tensors = {}
    for name, weight in load_file(plain / FILE).items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = weight
            continue
        experts, rows, columns = weight.shape
        size = (experts, columns, rows // 32)
        tensors[f"{name}_blocks"] = torch.randint(
            0, 256, (*size, 16), dtype=torch.uint8, generator=generator
        )
        tensors[f"{name}_scales"] = torch.randint(
            110, 128, size, dtype=torch.uint8, generator=generator
        )
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    said = {"quant_method": "mxfp4", "modules_to_not_convert": skipped}
    return rewritten(plain, path, tensors, said)
