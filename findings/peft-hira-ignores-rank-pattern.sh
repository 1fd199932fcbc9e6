#!/usr/bin/env bash
# HiraConfig takes rank_pattern, as LoraConfig does, checks nothing of it and ignores it: every layer
# gets the rank r, and adapter_config.json keeps a rank_pattern that says otherwise.
#   findings/peft-hira-ignores-rank-pattern.sh [PYTHON]     exits 0 while that is so
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
import json
from importlib.metadata import version

from peft import HiraConfig, LoraConfig, get_peft_model
from torch import nn

print({name: version(name) for name in ("peft", "transformers", "torch")})


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)


ranks = {}
for kind in (LoraConfig, HiraConfig):
    config = kind(r=4, target_modules=["a", "b"], rank_pattern={"b": 2})
    model = get_peft_model(Two(), config)
    model.save_pretrained(kind.__name__)
    said = json.load(open(f"{kind.__name__}/adapter_config.json"))["rank_pattern"]
    ranks[kind] = {
        name.split(".")[2]: weight.shape[0]
        for name, weight in model.named_parameters()
        if "lora_A" in name or "hira_A" in name
    }
    print(f"{kind.__name__}: rank_pattern {said}, ranks {ranks[kind]}")
assert ranks == {LoraConfig: {"a": 4, "b": 2}, HiraConfig: {"a": 4, "b": 4}}
PY
