"""GGUF files are refused with a way out, and the way out gives the numbers that they stand for."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mergeops.checkpoint import open_checkpoint
from mergeops.errors import SourceError

HEADS, WIDTH = 4, 64


def write_llama(path: Path) -> dict[str, np.ndarray]:
    """A llama of one layer in Q8_0; gives each tensor as the gguf package dequantises it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(32)
    matrices = {"token_embd": 32, "output": 32}
    layer = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    matrices |= {f"blk.0.{name}": WIDTH for name in layer}
    kind = gguf.GGMLQuantizationType.Q8_0
    generator = np.random.default_rng(0)
    numbers = {}
    for name, rows in matrices.items():
        codes = gguf.quants.quantize(generator.normal(size=(rows, WIDTH)).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", codes, raw_dtype=kind)
        numbers[name] = gguf.quants.dequantize(codes, kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return numbers


def test_the_way_out_of_a_gguf_file_gives_its_numbers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GgufConfig

    numbers = write_llama(tmp_path / "tiny.Q8_0.gguf")
    with pytest.raises(SourceError, match="only llama.cpp names and lays out") as refused:
        open_checkpoint(tmp_path)
    [told] = re.findall(r"transformers: (.+), and AutoTokenizer", str(refused.value))
    places = {"DIR": tmp_path, "NEW_DIR": tmp_path / "new"}
    eval(told, {"AutoModelForCausalLM": AutoModelForCausalLM, "GgufConfig": GgufConfig, **places})
    assert open_checkpoint(tmp_path / "new").tensors
    found = load_file(tmp_path / "new" / "model.safetensors")
    layer = "model.layers.0"
    plain = torch.from_numpy(numbers["blk.0.ffn_up"]).bfloat16()
    assert found[f"{layer}.mlp.up_proj.weight"].equal(plain)
    # llama.cpp interleaves the halves of each head's rows.
    rows = torch.from_numpy(numbers["blk.0.attn_q"]).view(HEADS, -1, 2, WIDTH)
    query = rows.transpose(1, 2).reshape(WIDTH, WIDTH).bfloat16()
    assert found[f"{layer}.self_attn.q_proj.weight"].equal(query)
