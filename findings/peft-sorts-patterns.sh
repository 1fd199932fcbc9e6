#!/usr/bin/env bash
# Of several keys of alpha_pattern (or rank_pattern) that fit a module, LoRA takes the first; but
# save_pretrained writes them in alphabetical order. So a saved adapter loads as another model.
#   findings/peft-sorts-patterns.sh [PYTHON]     exits 0 while that is so
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
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

print({name: version(name) for name in ("peft", "transformers", "torch")})
base = nn.Sequential(nn.Linear(8, 8))
config = LoraConfig(
    r=4,
    lora_alpha=4,
    target_modules=["0"],
    alpha_pattern={"0": 8, ".*": 40},
    init_lora_weights=False,
)
trained = get_peft_model(copy.deepcopy(base), config)
trained.save_pretrained("adapter")
loaded = PeftModel.from_pretrained(copy.deepcopy(base), "adapter")
x = torch.ones(1, 8)
scales = [model.base_model.model[0].scaling["default"] for model in (trained, loaded)]
print(f"scales {scales}, outputs apart by {float((trained(x) - loaded(x)).abs().max()):.2g}")
assert scales == [2.0, 10.0]
PY
