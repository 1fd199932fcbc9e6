#!/usr/bin/env bash
# Where a model's output head is tied to its embeddings and has a bias, as BERT's, LoRA with
# trainable_token_indices computes the head without the bias: the logits are others before the first
# step of training, without a warning, and training makes up for it.
#   findings/peft-tied-token-rows-drop-the-heads-bias.sh [PYTHON]     exits 0 while that is so
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
import copy
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForMaskedLM

print({name: version(name) for name in ("peft", "transformers", "torch")})
torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
plain = BertForMaskedLM(BertConfig(vocab_size=32, num_hidden_layers=1, **sizes)).eval()
bias = plain.cls.predictions.bias.data.normal_()
tokens = torch.arange(8)[None]
off = {}
for name, more in {"LoRA": {}, "with token rows": {"trainable_token_indices": [3]}}.items():
    config = LoraConfig(target_modules=["query"], **more)
    adapted = get_peft_model(copy.deepcopy(plain), config).eval()
    with torch.no_grad():
        off[name] = plain(tokens).logits - adapted(tokens).logits
    print(f"{name}, untrained: logits off by up to {off[name].abs().max():.3f}")
left = (off["with token rows"] - bias).abs().max()
print(f"less the head's bias: off by up to {left:.6f}")
assert off["LoRA"].abs().max() == 0
assert off["with token rows"].abs().max() > 1 and left < 1e-5
PY
