#!/usr/bin/env bash
# LoRA on embed_tokens and lm_head of a model that ties them: in use, each end adds its own change.
# merge_and_unload adds both changes to the one tensor that the two ends share, and returns another
# model than the one that was trained.
#   findings/peft-merges-a-tied-head-twice.sh [PYTHON]     exits 0 while that is so
set -euo pipefail
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"$python" -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet transformers==5.24.0 peft==0.21.2
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
venv/bin/python - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

print({name: version(name) for name in ("peft", "transformers", "torch")})
torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = LlamaConfig(
    vocab_size=32, num_hidden_layers=1, num_key_value_heads=2, tie_word_embeddings=True, **sizes
)
lora = LoraConfig(target_modules=["embed_tokens", "lm_head"], r=2, init_lora_weights=False)
model = get_peft_model(LlamaForCausalLM(config).eval(), lora)
ids = torch.tensor([[1, 5, 9, 30]])
with torch.no_grad():
    used = model(ids).logits
    merged = model.merge_and_unload()(ids).logits
print(f"logits in use up to {used.abs().max():.2f}, merged off by up to ", end="")
print(f"{(merged - used).abs().max():.2f}")
assert (merged - used).abs().max() > 0.1 * used.abs().max()
PY
