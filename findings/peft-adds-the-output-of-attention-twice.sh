#!/usr/bin/env bash
# LoRA on a torch.nn.MultiheadAttention adds the change of in_proj once and that of out_proj twice, in every
# forward pass, training included: the layer merges out_proj itself, and then has out_proj merge once more.
#   findings/peft-adds-the-output-of-attention-twice.sh [PYTHON]     exits 0 while that is so
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
from torch import nn

print({name: version(name) for name in ("peft", "transformers", "torch")})


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


torch.manual_seed(0)
base = One().double()
config = LoraConfig(r=2, lora_alpha=4, target_modules=["attention"], init_lora_weights=False)
peft = get_peft_model(copy.deepcopy(base), config).double()
trained = {name.split("attention.")[1]: p.detach() for name, p in peft.named_parameters()}
change = {
    part: 2.0 * trained[f"{at}lora_B.default.weight"] @ trained[f"{at}lora_A.default.weight"]
    for part, at in {"in": "", "out": "base_layer.out_proj."}.items()
}
x = torch.randn(1, 5, 8, dtype=torch.double)
off = {}
with torch.no_grad():
    for times in (1, 2):
        own = copy.deepcopy(base)
        own.attention.in_proj_weight += change["in"]
        own.attention.out_proj.weight += times * change["out"]
        off[times] = float((own(x) - peft(x)).abs().max())
        print(f"out_proj + {times} change: off by {off[times]:.1e}")
assert off[1] > 1e-3 > 1e-12 > off[2]
PY
