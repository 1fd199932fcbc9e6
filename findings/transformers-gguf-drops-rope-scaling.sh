#!/usr/bin/env bash
# A GGUF file of a model with a longer context says so: YaRN by rope.scaling.*, Llama 3.1 by a tensor
# of factors, rope_freqs.weight. transformers reads neither and does not warn: the model is loaded
# with plain rotations, and answers differently from the checkpoint that the file was made of.
#   findings/transformers-gguf-drops-rope-scaling.sh [PYTHON]     exits 0 while that is so
set -euo pipefail
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"$python" -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet transformers==5.24.0 accelerate==1.15.0 gguf==0.19.0
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
venv/bin/python - 2>stderr.txt <<'PY' || { cat stderr.txt; exit 1; }
from importlib.metadata import version

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, GgufConfig, LlamaConfig, LlamaForCausalLM

print({name: version(name) for name in ("transformers", "gguf", "torch")})
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
torch.manual_seed(0)
plain = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)).eval()
for parameter in plain.parameters():
    parameter.data.normal_(0, 0.2)
trained = LlamaForCausalLM(
    LlamaConfig(**SIZES, **HEADS, rope_parameters={"rope_theta": 10000.0, **YARN})
).eval()
trained.load_state_dict(plain.state_dict())

PIECES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write(path, *, scaling=False, factors=False):
    """The weights as llama.cpp's converter lays them out."""
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(1)
    out.add_context_length(256)
    out.add_embedding_length(64)
    out.add_feed_forward_length(128)
    out.add_head_count(4)
    out.add_head_count_kv(4)
    out.add_rope_dimension_count(16)
    out.add_rope_freq_base(10000.0)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_vocab_size(64)
    if scaling:
        out.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        out.add_rope_scaling_factor(8.0)
        out.add_rope_scaling_orig_ctx_len(32)
    if factors:
        out.add_tensor("rope_freqs.weight", np.full(8, 8.0, np.float32))
    for name, value in plain.state_dict().items():
        for ours, theirs in PIECES.items():
            name = name.replace(ours, theirs)
        weight = value.numpy()
        if "attn_q" in name or "attn_k" in name:
            # llama.cpp keeps the two halves of each head's rotation side by side.
            weight = weight.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)
        out.add_tensor(name.replace("model.layers.0", "blk.0"), np.ascontiguousarray(weight))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


write("plain.gguf")
write("yarn.gguf", scaling=True)
write("factors.gguf", factors=True)
header = gguf.GGUFReader("yarn.gguf")
said = {key: header.fields[key].contents() for key in header.fields if ".rope.scaling." in key}
print("yarn.gguf says:", said)
tokens = torch.arange(200)[None] % 64
with torch.no_grad():
    answers = {"plain": plain(tokens).logits, "trained with YaRN": trained(tokens).logits}
    for name in ("plain", "yarn", "factors"):
        model = AutoModelForCausalLM.from_pretrained(
            ".", gguf_file=f"{name}.gguf", quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        print(f"{name}.gguf is loaded with {model.config.rope_parameters}")
        answers[f"{name}.gguf"] = model.eval()(tokens).logits
apart = {name: float((one - answers["plain"]).abs().max()) for name, one in answers.items()}
print("logits' distance from the model without scaling:", {k: round(v, 4) for k, v in apart.items()})
assert apart["plain.gguf"] < 1e-3, apart
assert apart["yarn.gguf"] < 1e-3 and apart["factors.gguf"] < 1e-3, "the scaling is read now"
assert apart["trained with YaRN"] > 0.05, apart
PY
if grep -iE "rope|scaling" stderr.txt; then
    echo "transformers warns now"
    exit 1
fi
